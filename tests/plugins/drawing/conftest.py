"""Fixtures of drawing: one tiny picture model for all tests, and LoRAs of every layout."""

import pytest
import tiny_loras
from tiny_pictures import tiny_picture_model

import glmkit_drawing
from glmkit import DrawOptions
from glmkit.console import drain
from glmkit.testing import make_app


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, one_thread_always):
    """Return the folder of a tiny picture model."""
    return tiny_picture_model(tmp_path_factory.mktemp("pictures") / "tiny")


@pytest.fixture(scope="session")
def one_thread_always():
    """Keep tiny matrices off the other cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def opened(tiny, tmp_path_factory):
    """Return the model, loaded once; :func:`painter` gives it without LoRAs."""
    app = make_app(tmp_path_factory.mktemp("home"), drawing=glmkit_drawing)
    return app.load_image_model(str(tiny))


@pytest.fixture
def painter(opened):
    """Return the tiny model as something that draws."""
    opened.wear([])
    yield opened
    opened.wear([])


@pytest.fixture
def look():
    """Return a function that draws and returns the pixels, (H, W, 3), 0 to 1."""

    def pixels(painter, wish="a red apple", **options):
        import io

        import numpy as np
        from PIL import Image

        options = {"steps": 2, "seed": 3, "guidance": 3.0} | options
        (picture,) = drain(painter.draw(wish, DrawOptions(**options)))
        return np.asarray(Image.open(io.BytesIO(picture.png)), dtype=np.float64) / 255

    return pixels


@pytest.fixture(scope="session")
def loras(opened, tmp_path_factory):
    """Return LoRA files and folders by layout; all that begin with ``same`` say the same."""
    return tiny_loras.write_all(opened.pipeline, tmp_path_factory.mktemp("loras"))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Return a folder of three pictures, one of them wide."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    for at, size in enumerate(((20, 20), (16, 16), (48, 24))):
        shades = np.linspace(0, 255, size[0] * size[1] * 3).reshape(size[1], size[0], 3)
        Image.fromarray(np.roll(shades.astype(np.uint8), at * 50, axis=1)).save(
            folder / f"{at}.png"
        )
    return folder
