"""The config of a step on random images, which several benchmarks measure."""

from lbsgd.run.config import default_config


def synthetic_config(name, size, batch_size, worker_batch_size, dtype, **keys):
    """A run on one device at a constant rate; `keys` are further ones, dotted."""
    config = default_config()
    config.update(
        {
            "batch_size": batch_size,
            "worker_batch_size": worker_batch_size,
            "total_steps": 1000,
            "devices": 1,
            "dtype": dtype,
            "model": {"name": name},
            "learning_rate": {"warmup": "none", "decay": "none", "scaling": "none"},
            "data": {
                "source": "synthetic",
                "image_size": size,
                "synthetic_examples": batch_size,
                "synthetic_validation_examples": 1,
            },
        }
    )
    config.update_from_flattened_dict(keys)
    return config
