"""A trained network, ready to be used: images in, logits or named classes out."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Shaped

from lbsgd.data.interface import Interface
from lbsgd.data.source import format_shape
from lbsgd.models.networks import Network, parameter_type
from lbsgd.run.sharing import SharedFunction
from lbsgd.step.evaluation import mirrored
from lbsgd.step.pixels import normalize
from lbsgd.system.devices import count_devices, explain_out_of_memory, precision
from lbsgd.system.errors import ConfigError
from lbsgd.system.text import pluralize, short_repr
from lbsgd.use.reading import Image, Read, each_image, read_images

# Images that a device is given at once.
MOST_ROWS = 128


class Prediction(NamedTuple):
    """Holds a class that an image may show.

    Attributes:
      name: of the class.
      label: its number.
      probability: by the network's softmax; how far it can be relied on, `evaluate` measures.
    """

    name: str
    label: int
    probability: float


class Predicted(NamedTuple):
    """Holds what became of an image.

    Attributes:
      image: its path, or where it stands.
      predictions: the most probable classes, the most probable first; () where it cannot be read.
      problem: why it cannot be read; "" where it can.
    """

    image: str
    predictions: tuple[Prediction, ...] = ()
    problem: str = ""


class Model:
    """A trained network with its weights.

    `lbsgd.load` makes it. `model(images)` gives logits, `model.predict(paths)` names classes.

    Attributes:
      module: the Flax module in evaluation; for lbsgd's own networks
        `module.apply(variables, images, train=False)` gives the logits of normalized images.
      variables: {"params": ..., "batch_stats": ...}, on the devices.
      interface: what is done to an image before, and what the outputs mean.
      config: of the run, with the keys that were set.
      update: how many updates the weights have had.
      statistics: what batch norm normalizes by: "running" averages, or "precise" ones.
      devices: how many it computes on.
    """

    def __init__(
        self,
        network: Network,
        variables: Mapping[str, Any],
        interface: Interface,
        config: ml_collections.FrozenConfigDict,
        update: int,
        *,
        statistics: str = "running",
        devices: int = 0,
    ) -> None:
        """Brings the variables to the devices.

        Args:
          statistics: as the attribute.
          devices: how many; 0 for all there are.

        Raises:
          ConfigError: there are fewer.
        """
        self.interface, self.config = interface, config
        self.update, self.statistics = update, statistics
        self.module, self.network = network.in_evaluation, network
        self.devices = count_devices(devices)
        mesh = Mesh(np.array(jax.devices()[: self.devices]), ("devices",))
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._by_row = NamedSharding(mesh, PartitionSpec("devices"))
        with precision(config.dtype):
            self.variables = jax.device_put(dict(variables), self._everywhere)

    def __repr__(self) -> str:
        """Names the network, what it takes and gives, and how far it was trained."""
        shape = format_shape(self.interface.image_shape)
        return (
            f"<lbsgd Model {self.config.model.name}: images {shape}, "
            f"{pluralize(len(self.classes), 'class', 'classes')}, "
            f"{pluralize(self.update, 'update')}>"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class, by label."""
        return self.interface.classes

    @property
    def classifies(self) -> bool:
        """Tells whether its outputs are logits of classes, as far as the config says."""
        return bool(self.config.task.name == "classification")

    def preprocess(self, images: Shaped[Any, "..."]) -> Any:
        """Normalizes uint8 images; takes floats as normalized already."""
        if images.dtype != np.uint8:
            return images.astype(parameter_type(self.config))
        interface, dtype = self.interface, parameter_type(self.config)
        return normalize(images, mean=interface.mean, std=interface.std, dtype=dtype)

    def __call__(self, images: Shaped[Any, "n h w c"]) -> Any:
        """Computes the network's outputs, numpy: logits `[n, outputs]` where it classifies.

        Args:
          images: any number of them, of the shape that the network takes. uint8 are pixels, which
            are normalized here; floats are taken as normalized already.

        Raises:
          ConfigError: they have another shape or type.
        """
        return self._computed(self._outputs, self._checked(images))

    def probabilities(
        self, images: Shaped[Any, "n h w c"], *, flip: bool = False
    ) -> Float[np.ndarray, "n outputs"]:
        """Computes the softmax over all outputs, `[n, outputs]`.

        Args:
          images: as for `__call__`.
          flip: whether to average the probabilities of each image and its mirror image.

        Raises:
          ConfigError: the images are others, or the network's task is no classification.
        """
        self.check_classifies("probabilities")
        function = self._flipped_probabilities if flip else self._probabilities
        probabilities: np.ndarray = self._computed(function, self._checked(images))
        return probabilities

    def predict(
        self,
        images: Iterable[Image] | Image,
        top: int = 5,
        *,
        flip: bool = False,
        batch_size: int = 64,
    ) -> list[list[Prediction]]:
        """Predicts the most probable classes of images, each the most probable first.

        Args:
          images: paths of image files, arrays of pixels, uint8 `[h, w, c]` or grey `[h, w]`, or
            images of Pillow, one alone or several; resized and cropped as evaluation does it.
          top: how many classes each.
          flip: as for `probabilities`.
          batch_size: how many are read and computed at once.

        Raises:
          ConfigError: an image cannot be read, which is named, or is none; or the task is no
            classification.
        """
        found = []
        for one in self.predict_each(images, top, flip=flip, batch_size=batch_size):
            if one.problem:
                raise ConfigError(f"{one.image}: {one.problem}")
            found.append(list(one.predictions))
        return found

    def predict_each(
        self,
        images: Iterable[Image] | Image,
        top: int = 5,
        *,
        flip: bool = False,
        batch_size: int = 64,
    ) -> Iterator[Predicted]:
        """Predicts as `predict` does, image by image, and goes on after one that cannot be read.

        Raises:
          ConfigError: what is given is no image, or the network's task is no classification.
        """
        self.check_classifies("predict")
        if top < 1 or batch_size < 1:
            raise ConfigError(f"top and batch_size must be at least 1, not {top} and {batch_size}")
        found = read_images(
            each_image(images), self.interface, batch_size, self.config.data.threads
        )
        for batch in found:
            yield from self._predict_batch(batch, top, flip)

    def _predict_batch(self, batch: Sequence[Read], top: int, flip: bool) -> Iterator[Predicted]:
        pixels = [read.pixels for read in batch if read.pixels is not None]
        found = iter(self.probabilities(np.stack(pixels), flip=flip) if pixels else ())
        for read in batch:
            if read.pixels is None:
                yield Predicted(read.name, problem=read.problem)
            else:
                yield Predicted(read.name, self._most_probable(next(found), top))

    def _most_probable(
        self, probabilities: Float[np.ndarray, " outputs"], top: int
    ) -> tuple[Prediction, ...]:
        # Outputs past the classes mean nothing; of equals the lower label comes first.
        of_class = probabilities[: len(self.classes)]
        order = np.argsort(-of_class, kind="stable")[:top].tolist()
        return tuple(Prediction(self.classes[i], i, float(of_class[i])) for i in order)

    def check_classifies(self, what: str) -> None:
        """Raises ConfigError where the outputs are not known to be logits of classes."""
        if not self.classifies:
            raise ConfigError(
                f"{what} needs a classification, and the task of this network is "
                f"{short_repr(self.config.task.name)}; model(images) gives its outputs"
            )

    # --- the compiled functions ---

    @functools.cached_property
    def _outputs(self) -> Callable[..., Any]:
        return SharedFunction(
            lambda params, stats, images: self.network.evaluate(
                params, stats, self.preprocess(images)
            ),
            self._by_row,
        )

    @functools.cached_property
    def _probabilities(self) -> Callable[..., Any]:
        return self._softmax(self.network.evaluate)

    @functools.cached_property
    def _flipped_probabilities(self) -> Callable[..., Any]:
        return self._softmax(mirrored(self.network.evaluate))

    def _softmax(self, network: Callable[..., Any]) -> Callable[..., Any]:
        return SharedFunction(
            lambda params, stats, images: jax.nn.softmax(
                network(params, stats, self.preprocess(images))
            ),
            self._by_row,
        )

    def _computed(self, function: Callable[..., Any], images: np.ndarray) -> Any:
        """Computes a function of images, as many at a time as fit, in few different shapes."""
        most = MOST_ROWS * self.devices
        remedy = "give it fewer images at once, or more devices"
        found = []
        with precision(self.config.dtype), explain_out_of_memory("the network", remedy):
            for start in range(0, max(len(images), 1), most):
                found.append(self._of_rows(function, images[start : start + most]))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def _of_rows(self, function: Callable[..., Any], rows: np.ndarray) -> Any:
        """Computes a function of some images, filled up to a power of two for each device."""
        each = 2 ** math.ceil(math.log2(max(1, math.ceil(len(rows) / self.devices))))
        filled = np.zeros((each * self.devices, *rows.shape[1:]), rows.dtype)
        filled[: len(rows)] = rows
        variables = self.variables["params"], self.variables["batch_stats"]
        found = function(*variables, jax.device_put(filled, self._by_row))
        return jax.tree.map(lambda x: x[: len(rows)], jax.device_get(found))

    # --- what is wrong ---

    def _checked(self, images: Any) -> np.ndarray:
        """Checks type and shape of images, and brings floats to the type that is computed in."""
        array = np.asarray(images)
        wanted = self.interface.image_shape
        if array.ndim != 4 or array.shape[1:] != wanted:
            raise ConfigError(
                f"the network takes images [n, {', '.join(map(str, wanted))}], not "
                f"{list(array.shape)}; model.predict resizes and crops"
            )
        if array.dtype == np.uint8:
            return array
        if not np.issubdtype(array.dtype, np.floating):
            raise ConfigError(
                f"images are pixels in uint8, or normalized floats, not {array.dtype}"
            )
        return array.astype(parameter_type(self.config))
