"""What tars and zips have in common."""

import pytest
from image_files import CLASSES, below, encoded, picture, tree, write, write_tar, write_zip

from lbsgd.data.sources.archive import archive_splits
from lbsgd.data.sources.folder import FolderSource

LEFT_OUT = {
    "train/cat/notes.txt": b"",
    "train/cat/more.TXT": b"",
    "train/dog/raw.nef": b"",
    "train/dog/README": b"",
    "train/dog/Thumbs.db": b"",
    "train/dog/._0.jpg": b"",
    "train/@eaDir/dog/0.jpg": b"",
    "train/dog/@eaDir/0.jpg": b"",
    "train/dog/@eaDir/1.jpg": b"",
    "train/dog/.hidden.jpg": b"",
    "train/.git/a/b.jpg": b"",
    "train/cover.jpg": encoded(picture(0)),
    "train/labels.csv": b"",
    "val/cat/x.heic": b"",
}


@pytest.mark.parametrize("pack", [write_tar, write_zip])
def test_archive_says_what_it_leaves_out_as_its_folder_does(tmp_path, pack):
    files = below("train", tree()) | below("val", tree(1)) | LEFT_OUT
    root = write(tmp_path / "set", files)
    found = archive_splits(pack(tmp_path / "x", files))
    assert found["train"].notes == FolderSource(root / "train").notes
    for part in ("1 images in no folder of a class", "2 @eaDir/", "2 .txt"):
        assert part in found["train"].notes[0]
    assert found["validation"].notes == FolderSource(root / "val").notes
    assert "left out: 1 .heic" in found["validation"].notes[0]
    assert len(found["train"]) == 12


@pytest.mark.parametrize("pack", [write_tar, write_zip])
def test_an_image_beside_the_classes_hides_none_of_them(tmp_path, pack):
    files = below("set", tree() | {"cover.jpg": encoded(picture(0))})
    found = archive_splits(pack(tmp_path / "x", files))
    assert found["train"].classes == CLASSES
