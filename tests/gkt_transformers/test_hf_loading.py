"""Models that load at the same time, as a doctor or a gateway with several engines asks of them."""

from concurrent.futures import ThreadPoolExecutor

from gkt_plugins.demo.models import model_dir
from gkt_transformers._loading import load_model


def test_models_that_load_at_once_all_come_out_complete():
    folders = [str(model_dir(name)) for name in ("teacher", "student", "draft")] * 4
    with ThreadPoolExecutor(len(folders)) as pool:
        loaded = list(pool.map(load_model, folders))
    for model, again in zip(loaded, map(load_model, folders), strict=True):
        pairs = zip(model.module.state_dict().values(), again.module.state_dict().values(), strict=True)
        assert all(bool((one == other).all()) for one, other in pairs)
