"""What tasks of plugins build on, of the floors below: models, and how they are loaded."""

from ..models.causal import CausalModel as CausalModel
from ..models.layouts import read_model as read_model
from ..models.prompts import open_renderer as open_renderer
from ..runtime.devices import devices_of as devices_of
from ..runtime.engines.local import LocalModel as LocalModel
from ..runtime.fingerprint import Fingerprint as Fingerprint
from ..runtime.loading import (
    DTYPES as DTYPES,
    load_local as load_local,
    physical_cores as physical_cores,
)
from ..runtime.memory import memory_of as memory_of, ran_out as ran_out, readable as readable
from ..runtime.weights import weight_files as weight_files
