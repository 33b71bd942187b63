"""Pulls that are killed, and pulls side by side."""

from __future__ import annotations

import os
import random
import time

import pytest
from source_parts import ID, NEEDED, WEIGHTS, hf, in_store, pull, run
from stand_in import model_files

from glmkit import sources, store

KILLED = """
    import os, signal, sys
    from pathlib import Path
    from glmkit import Config, disk, hubs, sources
    from glmkit.errors import SourceError
    import filelock, safetensors

    home, url, name = sys.argv[1:]
    config = Config(home=Path(home), hf_endpoint=url)
    attempts = 0
    while True:
        attempts += 1
        child = os.fork()
        if child == 0:
            events = 0
            for event in sources.pull(name, config=config):
                events += 1
                if events == attempts:
                    os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        try:
            sources.resolve(name, config=config)
        except SourceError:
            continue
        sys.exit("half a model looks complete")
    print(attempts)
"""


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestKilled:
    def test_a_pull_killed_at_every_step_never_looks_complete(self, config, server):
        files = model_files(weights=9_000_000)
        server.offer_hf(ID, files)
        process = run(KILLED, config.home, server.url, ID)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 8
        located = sources.resolve(ID, config=config)
        assert (located.path / WEIGHTS).read_bytes() == files[WEIGHTS]
        blob = next(each for each in server.pages if each.startswith("/cdn/"))
        assert int(server.headers(blob)[-1]["Range"].removeprefix("bytes=").removesuffix("-")) > 0

    def test_killed_at_random_moments(self, config, server):
        files = model_files(weights=3_000_000)
        server.offer_hf(ID, files)
        server.pause_s = 0.005
        command = """
            import sys
            from pathlib import Path
            from glmkit import Config, sources
            from glmkit.console import drain
            config = Config(home=Path(sys.argv[1]), hf_endpoint=sys.argv[2])
            print("ready", flush=True)
            drain(sources.pull(sys.argv[3], config=config))
        """
        moments = random.Random(3)
        for _ in range(4):
            process = run(command, config.home, server.url, ID)
            process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.4))
            process.kill()
            process.communicate()
            complete = store.get(config, ID)
            assert complete is None or complete.manifest.size == sum(
                len(files[each]) for each in NEEDED
            )
        server.pause_s = 0
        path = pull(ID, hf(config, server))
        assert (path / WEIGHTS).read_bytes() == files[WEIGHTS]


@pytest.mark.network
@pytest.mark.allow_hosts(["127.0.0.1"])
def test_two_pulls_of_one_model_download_it_once(config, server):
    server.offer_hf(ID, model_files(weights=4_000_000))
    server.pause_s = 0.005
    command = """
        import sys
        from pathlib import Path
        from glmkit import Config, sources
        config = Config(home=Path(sys.argv[1]), hf_endpoint=sys.argv[2])
        print(*{event.stage for event in sources.pull(sys.argv[3], config=config)}, sep="|")
    """
    both = [run(command, config.home, server.url, ID) for _ in range(2)]
    results = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], results
    blob = next(each for each in server.pages if each.startswith("/cdn/"))
    assert server.sent(blob) == 4_000_000
    assert in_store(config) == [ID]
