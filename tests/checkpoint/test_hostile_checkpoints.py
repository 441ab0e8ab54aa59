"""Files made to do harm: the checkpoint is passed over, and nothing is opened or run."""

import json
import os
import pickle

import pytest
import tensorstore as ts
from two_checkpoints import restored, same_or_previous

from lbsgd.checkpoint import manifest, store
from lbsgd.system.errors import ConfigError


def rewrite(folder, change):
    """Changes the manifest of checkpoint 2, and makes its checksum right."""
    path = folder / "2" / "manifest" / "metadata"
    body = json.loads(path.read_text())
    del body["sha256"]
    change(body)
    body["sha256"] = manifest._digest(body)
    path.write_text(json.dumps(body))


def set_entry(**fields):
    return lambda body: body["arrays"]["kernel"].update(fields)


MANIFESTS = {
    "later format": (lambda b: b.update(format=3), "its manifest has format 3, not 2"),
    "no format": (lambda b: b.pop("format"), "its manifest has format None, not 2"),
    "no update": (lambda b: b.pop("update"), "its manifest has no update"),
    "update of text": (lambda b: b.update(update="2"), "its manifest has no update"),
    "update of truth": (lambda b: b.update(update=True), "its manifest has no update"),
    "identity of text": (lambda b: b.update(identity="x"), "its manifest has no identity"),
    "interface of text": (lambda b: b.update(interface="x"), "its manifest has no interface"),
    "list of arrays": (lambda b: b.update(arrays=[]), "its manifest has no arrays"),
    "entry of text": (
        lambda b: b["arrays"].update(kernel="x"),
        "its manifest does not describe 'kernel'",
    ),
    "objects": (set_entry(dtype="object"), "its manifest does not describe 'kernel'"),
    "objects, short": (set_entry(dtype="O"), "its manifest does not describe 'kernel'"),
    "records": (set_entry(dtype="f4,f4"), "its manifest does not describe 'kernel'"),
    "no such dtype": (set_entry(dtype="x" * 9), "its manifest does not describe 'kernel'"),
    "big dtype": (set_entry(dtype="V99999999"), "its manifest does not describe 'kernel'"),
    "dtype of a number": (set_entry(dtype=7), "its manifest does not describe 'kernel'"),
    "negative shape": (set_entry(shape=[-3, 1000]), "its manifest does not describe 'kernel'"),
    "shape of reals": (set_entry(shape=[3.0, 1000]), "its manifest does not describe 'kernel'"),
    "shape of a number": (set_entry(shape=3000), "its manifest does not describe 'kernel'"),
    "many dimensions": (set_entry(shape=[1] * 1000), "its manifest does not describe 'kernel'"),
    "control characters": (
        lambda b: b.update(identity={"seed\x1b]0;\n": "\x07"}),
        "it is of another run, which differs in seed (None there, 0 here), "
        "seed\N{REPLACEMENT CHARACTER}]0; "
        "(\N{REPLACEMENT CHARACTER} there, None here)",
    ),
    "wrong checksum": (
        set_entry(sha256="0" * 64),
        "kernel does not have the checksum that it was saved with",
    ),
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_hostile_manifest_is_passed_over(folder, how):
    change, reason = MANIFESTS[how]
    rewrite(folder, change)
    assert restored(folder) == (1, [f"checkpoint 2 is passed over: {reason}"])


@pytest.mark.parametrize("shape", [[3, 1001], [2**62], [2**40, 2**40], [10**4000]])
def test_a_manifest_of_other_shapes_is_of_another_network(folder, shape):
    """No memory is asked for."""
    rewrite(folder, set_entry(shape=shape))
    with pytest.raises(ConfigError, match="kernel is float32"):
        restored(folder)
    found = store.read_manifest(folder / "2")
    with pytest.raises(manifest.DamagedError, match=r"it has .* bytes of|is not laid out as"):
        store.read_arrays(folder / "2", found)


TEXTS = {
    "deep": b"[" * 10**6,
    "pickle": pickle.dumps({"a": 1}),
    "list": b"[1, 2]",
    "nothing": b"null",
    "long number": b"1" * 10**6,
    "not text": bytes(range(256)),
    "huge number": b'{"format": 1e999, "sha256": NaN}',
}


@pytest.mark.parametrize("name", ["manifest/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("text", TEXTS)
def test_files_of_nonsense(folder, name, text):
    (folder / "2" / name).write_bytes(TEXTS[text])
    assert same_or_previous(folder) == 1 or name == "_CHECKPOINT_METADATA"


@pytest.mark.parametrize("name", ["manifest/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"])
def test_a_huge_index_is_not_read(folder, name):
    os.truncate(folder / "2" / name, 2**40)  # a hole: takes no room
    update, said = restored(folder)
    assert (update, said) == (1, [f"checkpoint 2 is passed over: {name} has {2**40} bytes"])


@pytest.mark.parametrize("name", ["manifest/metadata", "state/_METADATA", "state/extra"])
@pytest.mark.parametrize("kind", ["fifo", "link", "dangling link"])
def test_what_is_no_plain_file_is_not_opened(folder, name, kind):
    """Reading a FIFO would never end; a link may lead anywhere."""
    path = folder / "2" / name
    path.unlink(missing_ok=True)
    make = {
        "fifo": os.mkfifo,
        "link": lambda p: p.symlink_to("/etc/hostname"),
        "dangling link": lambda p: p.symlink_to("nowhere"),
    }
    make[kind](path)
    assert restored(folder) == (1, [f"checkpoint 2 is passed over: {name} is not a plain file"])


def test_a_link_to_a_checkpoint_is_not_followed(folder):
    (folder / "2").rename(folder.parent / "elsewhere")
    (folder / "2").symlink_to(folder.parent / "elsewhere")
    assert restored(folder) == (1, ["checkpoint 2 is passed over: it is not a folder"])
    assert (folder.parent / "elsewhere").is_dir()


@pytest.mark.parametrize("kind", ["jax.Array", "scalar", "string", "None", "Dict", "os.system"])
def test_no_file_asks_for_another_type(folder, kind):
    path = folder / "2" / "state" / "_METADATA"
    tree = json.loads(path.read_text())
    for entry in tree["tree_metadata"].values():
        entry["value_metadata"]["value_type"] = kind
    path.write_text(json.dumps(tree))
    same_or_previous(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2**40], "chunks": [2**40]},
        {"shape": [3, 1000], "chunks": [2**40, 2**20]},
        {"shape": [3, 1000], "chunks": [3, 1000], "dtype": "<i4"},
    ],
)
def test_arrays_laid_out_otherwise_are_not_read(folder, change):
    """They would need memory."""
    where = f"{folder}/2/state/"
    kvstore = {"driver": "ocdbt", "base": f"file://{where}", "path": "kernel/"}
    zarray = {"dtype": "<f4", "compressor": None, "fill_value": None, **change}
    spec = {"driver": "zarr", "kvstore": kvstore, "metadata": zarray}
    ts.KvStore.open(kvstore).result().delete_range(ts.KvStore.KeyRange()).result()
    ts.open(spec, create=True).result()
    reason = "kernel is not laid out as its manifest says"
    assert restored(folder) == (1, [f"checkpoint 2 is passed over: {reason}"])


def test_a_hostile_name_leads_nowhere(folder, tmp_path):
    rewrite(folder, lambda b: b["arrays"].update({"../../x": b["arrays"].pop("kernel")}))
    with pytest.raises(ConfigError, match=r"kernel is not in it, \.\./\.\./x is only in it"):
        restored(folder)
    with pytest.raises(manifest.DamagedError, match="its arrays are not those of its manifest"):
        store.read_arrays(folder / "2", store.read_manifest(folder / "2"))
