"""One machine's worker: ``python -m cluster.worker --model FOLDER --engine vllm --listen HOST:PORT --token-file FILE``

Supervises one engine on loopback and is the only thing that faces the network. Invariant: it listens beyond loopback
only with a token; when it ends, by whatever means, its engine ends too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.bearer import Bearer, check_exposure, others_can_read, read_token
from cluster.engine_log import EngineLog
from cluster.engines.base import Engine, EngineOptions
from cluster.engines.mlx import Mlx
from cluster.engines.vllm import Vllm
from cluster.fingerprint import model_fingerprint
from cluster.http_server import make_server
from cluster.routes import make_app
from cluster.serving import Serving
from cluster.supervision import Supervision
from cluster.weight_check import WeightCheck
from cluster.weight_store import WeightStore
from cluster.wire import ModelFingerprint
from mlx_sumrl.errors import UserError

DEFAULT_LISTEN = "127.0.0.1:8700"
DEFAULT_MAX_RANK = 32
BACKLOG = 1024
DEFAULT_MAX_WEIGHTS_GIB = 32.0
DESCRIPTION = """Sample completions for a trainer on another machine.

The worker starts an engine (vLLM, vllm-metal or mlx_sumrl's own sampler) for itself, restarts it when it dies, and
takes in new weights from the trainer. The engine listens on this machine only; the trainer talks to the worker, with
the token that both were given."""
EXAMPLES = """examples:
  make a token, once; the trainer gets a copy of the file
    (umask 077; openssl rand -hex 32 > token)
  a Mac with vllm-metal in an environment of its own
    python -m cluster.worker --model models/qwen --engine vllm-metal --vllm ~/vllm-metal/bin/vllm \\
        --listen 0.0.0.0:8700 --token-file token
  without vLLM
    python -m cluster.worker --model models/qwen --engine mlx --listen 0.0.0.0:8700 --token-file token
  is it up?
    curl -H "Authorization: Bearer $(cat token)" http://HOST:8700/v1/health
"""
log = logging.getLogger("cluster.worker")


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told."""

    engine: Engine
    model: ModelFingerprint
    host: str
    port: int
    token: str | None
    folder: Path
    """For weights and the engine's log; the worker's alone."""
    max_weights_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; the exit code: 0, or 2 for a wrong option."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        with work_folder(arguments.work_dir) as folder:
            options = options_from(arguments, folder)
            asyncio.run(run(options))
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m cluster.worker",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--model", required=True, metavar="FOLDER", help="the model folder that training starts from")
    add(
        "--engine",
        required=True,
        choices=("vllm", "vllm-metal", "mlx"),
        help="what samples: vLLM, vLLM on a Mac, or mlx_sumrl's own sampler",
    )
    add(
        "--vllm",
        metavar="PROGRAM",
        default="vllm",
        help="the vllm executable of its own environment (default: the one on the PATH)",
    )
    add(
        "--listen",
        metavar="HOST:PORT",
        default=DEFAULT_LISTEN,
        help=f"where the trainer reaches it; 0.0.0.0:PORT is every network of this machine, and needs a token "
        f"(default: {DEFAULT_LISTEN}); port 0 takes a free one",
    )
    add("--token-file", metavar="FILE", type=Path, help="a file with the token that the trainer has too")
    add(
        "--work-dir",
        metavar="FOLDER",
        type=Path,
        help="for weights and engine.log; one worker each; weights of an earlier run are removed from it "
        "(default: a temporary folder)",
    )
    add(
        "--max-model-len",
        metavar="N",
        type=int,
        help="longest prompt and completion together, in tokens (vLLM)",
    )
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="of the engine's weights and sums")
    add(
        "--max-lora-rank",
        metavar="N",
        type=int,
        default=DEFAULT_MAX_RANK,
        help="largest rank of an adapter; vLLM knows 1, 8, 16, 32, 64, 128, 256, 320, 512 (default: %(default)s)",
    )
    add(
        "--max-weights-gib",
        metavar="X",
        type=float,
        default=DEFAULT_MAX_WEIGHTS_GIB,
        help="largest version that is taken in (default: %(default)s)",
    )
    add(
        "--engine-arguments",
        metavar="WORDS",
        default="",
        help="more of the engine's own options, as one quoted text: '--gpu-memory-utilization 0.7'",
    )
    return found


def options_from(arguments: argparse.Namespace, folder: Path) -> WorkerOptions:
    """The options of a command line. Raises `UserError` for what is wrong, before anything is started."""
    host, port = address(arguments.listen)
    token = None if arguments.token_file is None else read_token(arguments.token_file)
    check_exposure(host, token)
    if arguments.token_file is not None and others_can_read(arguments.token_file):
        log.warning("other users of this machine can read %s; chmod 600 it", arguments.token_file)
    if arguments.max_weights_gib <= 0 or arguments.max_lora_rank < 1 or (arguments.max_model_len or 1) < 1:
        raise UserError("--max-weights-gib, --max-lora-rank and --max-model-len must be above 0")
    if arguments.engine == "mlx" and (arguments.dtype == "float16" or arguments.max_model_len is not None):
        raise UserError(
            "--engine mlx knows --dtype float32 and bfloat16, and no --max-model-len; leave it out"
        )
    model = Path(arguments.model)
    if not model.is_dir():
        raise UserError(
            f"--model {arguments.model} is no folder; copy the model folder that the trainer starts from to here"
        )
    engine = EngineOptions(
        model=model.resolve(),
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        max_rank=arguments.max_lora_rank,
        extra=tuple(shlex.split(arguments.engine_arguments)),
    )
    return WorkerOptions(
        engine=Mlx(engine)
        if arguments.engine == "mlx"
        else Vllm(engine, executable(arguments), arguments.engine),
        model=model_fingerprint(engine.model),
        host=host,
        port=port,
        token=token,
        folder=folder,
        max_weights_bytes=int(arguments.max_weights_gib * (1 << 30)),
    )


def address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 host in brackets. Raises `UserError`."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--listen {text} is no HOST:PORT; write it as {DEFAULT_LISTEN}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def executable(arguments: argparse.Namespace) -> str:
    """The vllm program. Raises `UserError` where it is not there."""
    found = shutil.which(str(arguments.vllm))
    if found is None:
        raise UserError(
            f"--vllm {arguments.vllm} is no program that can be run; name the one in vLLM's own environment, "
            "as .vllm/bin/vllm after `make vllm`"
        )
    return str(Path(found).absolute())


@contextlib.contextmanager
def work_folder(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, this worker's alone while it runs, or a temporary one."""
    if asked is None:
        with tempfile.TemporaryDirectory(prefix="sumrl-worker-") as folder:
            yield Path(folder)
        return
    import fcntl

    try:
        asked.mkdir(parents=True, exist_ok=True)
        lock = (asked / "worker.lock").open("w")
    except OSError as error:
        raise UserError(f"--work-dir {asked} cannot be used ({error.strerror}); name another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
        except OSError:
            raise UserError(
                f"--work-dir {asked} is another worker's, which is running; name another folder"
            ) from None
        yield asked.resolve()


async def run(options: WorkerOptions) -> None:
    """Serve until SIGINT or SIGTERM. Raises `UserError` where the address is taken."""
    listening = bound(options.host, options.port)
    engine = options.engine
    check = WeightCheck(engine.options.model, engine.options.max_rank)
    store = WeightStore(options.folder / "weights", check, options.max_weights_bytes)
    engine_log = EngineLog(options.folder / "engine.log")
    supervision = Supervision(engine, engine_log)
    bearer = Bearer(options.token)
    server = make_server(
        make_app(Serving(supervision, store, options.model), bearer), options.host, options.port
    )
    log.info(
        "listening on %s:%d, %s; the engine writes to %s",
        options.host,
        listening.getsockname()[1],
        "with a token" if options.token else "without a token, for this machine only",
        options.folder / "engine.log",
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    supervising = asyncio.create_task(supervision.run())
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await asyncio.wait({supervising, serving}, return_when=asyncio.FIRST_COMPLETED)
        if supervising.done():
            supervising.result()  # it never ends by itself: this raises what ended it
    finally:
        server.stop()
        supervising.cancel()
        await asyncio.gather(supervising, serving, return_exceptions=True)
        engine_log.close()


def bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `UserError` where there can be none."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family[0], socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(family[4])
        found.listen(BACKLOG)  # whoever reads the port in the log can connect
    except OSError as error:
        raise UserError(
            f"--listen {host}:{port} cannot be had ({error.strerror}); choose another address or port"
        ) from None
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal does not end a night's run
    sys.exit(main())
