"""Any request that the OpenAPI page allows, and many that it does not: never a 500, always the declared types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance

from cluster.bearer import Bearer
from cluster.engine_log import EngineLog
from cluster.engines.base import EngineOptions
from cluster.engines.vllm import Vllm
from cluster.routes import make_routes
from cluster.serving import Serving
from cluster.supervision import Supervision
from cluster.weight_check import WeightCheck
from cluster.weight_store import WeightStore
from cluster.wire import ModelFingerprint, Problem
from cluster.worker_metrics import WorkerMetrics
from tests.cluster.running_worker import RANK, Simulation, simulation, write_simulated_model


def openapi(folder: Path) -> dict[str, Any]:
    """The page of the routes, which no worker serves."""
    model = write_simulated_model(folder / "model")
    store = WeightStore(folder / "weights", WeightCheck(model, RANK), 1 << 20)
    supervision = Supervision(Vllm(EngineOptions(model), "vllm"), EngineLog(folder / "engine.log"))
    serving = Serving(supervision, store, ModelFingerprint(config="0" * 64, tokenizer="0" * 64))
    page: dict[str, Any] = make_routes(serving, WorkerMetrics(serving, Bearer(None))).openapi()
    return page


def test_exactly_the_routes_of_the_contract(tmp_path: Path) -> None:
    import cluster.wire

    stated = {
        (line.split()[0], "/v1" + line.split()[1])
        for line in str(cluster.wire.__doc__).splitlines()
        if line.strip().startswith(("GET", "POST", "PUT"))
    }
    found = {
        (method.upper(), path) for path, methods in openapi(tmp_path)["paths"].items() for method in methods
    }
    assert found == stated
    assert len(found) == 9


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with simulation(tmp_path_factory.mktemp("fuzzed")) as found:
        yield found


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return schemathesis.openapi.from_dict(openapi(tmp_path_factory.mktemp("page")))


PLAIN = [("get", "/info"), ("get", "/health"), ("get", "/metrics")]
"""Nothing about these can be broken."""
ROUTES = [
    *(("post", "/generate"), ("post", "/score"), ("post", "/activate"), ("post", "/weights/{version}")),
    *(("put", "/weights/{version}/{file}"), ("post", "/weights/{version}/complete")),
]


@pytest.mark.parametrize(
    ("method", "route", "mode"),
    [
        *((*route, GenerationMode.POSITIVE) for route in PLAIN),
        *((*route, mode) for route in ROUTES for mode in GenerationMode),
    ],
)
def test_no_request_makes_it_fail(
    schema: Any, simulated: Simulation, method: str, route: str, mode: GenerationMode
) -> None:
    """Requests that the page allows, and such as break it in one place."""
    worker, operation = simulated.worker, schema["/v1" + route][method]
    statuses = set()

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def fuzz(case: Any) -> None:
        answer = case.call(
            base_url=f"http://127.0.0.1:{worker.port}",
            headers={"Authorization": worker.http.headers["Authorization"]},
        )
        statuses.add(answer.status_code)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        if answer.status_code >= 400:
            Problem.model_validate_json(answer.content)
        else:
            case.validate_response(answer, checks=[response_schema_conformance])

    fuzz()
    assert statuses


def test_it_still_works_afterwards(simulated: Simulation) -> None:
    simulated.worker.wait_for("ready")
    assert simulated.worker.sampled()[1] > 0
