"""The command `python -m executor`: run denoising steps on one device for a TetriServe scheduler."""

import os
import signal
import sys
from pathlib import Path

import click

from executor.config import (
    ATTENTIONS,
    COMPILE_MODES,
    DTYPES,
    Config,
    cache_folder,
    check_addresses,
    node_name,
)
from executor.options import NumberList, RoleList, SizeList
from executor.profile_command import profile
from executor.roles import ROLES
from tetriserve import logs
from tetriserve.options import NOT_NEGATIVE, Number

log = logs.Logger("executor")


class Commands(click.Group):
    """Without a command it serves."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command; its options come after its name."""
        if given := [name for name in ctx.params if _given(ctx, name)]:
            ctx.fail(f"--{given[0].replace('_', '-')} comes after {args[0]}: options follow their command")
        return super().resolve_command(ctx, args)


def _given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


@click.group(
    cls=Commands,
    invoke_without_command=True,
    subcommand_metavar="[profile ...]",
    context_settings={
        "auto_envvar_prefix": "TETRISERVE_EXECUTOR",
        "show_default": True,
        "max_content_width": 110,
    },
    epilog="Stops cleanly at Ctrl-C or SIGTERM: it finishes its step and hands back what it has not begun.",
)
@click.option(
    "--scheduler",
    metavar="HOST:PORT",
    default="127.0.0.1:7700",
    envvar="TETRISERVE_SCHEDULER",
    show_envvar=True,
    help="The scheduler to work for; it need not run yet.",
)
@click.option(
    "--device", default="cpu", show_envvar=True, help="Where to compute: cpu, or cuda:N for one GPU."
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    show_envvar=True,
    show_default="the built-in model",
    help="A checkpoint folder of diffusers, e.g. of FLUX.1-dev (the one with model_index.json in it).",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    show_envvar=True,
    show_default="bfloat16 on a GPU, float32 on a CPU",
    help="Precision of weights and latents; the same for all executors of a cluster.",
)
@click.option(
    "--attention",
    type=click.Choice(ATTENTIONS),
    default="sdpa",
    show_envvar=True,
    help="Attention kernel: sdpa works everywhere, math is slow and exact, the others need a GPU.",
)
@click.option(
    "--compile",
    "compile_mode",
    metavar="[MODE]",
    type=click.Choice(COMPILE_MODES),
    is_flag=False,
    flag_value="default",
    show_envvar=True,
    show_default="off",
    help="Compile the transformer with torch.compile: default, reduce-overhead (CUDA graphs; on a CPU just "
    "as default) or max-autotune. Takes minutes at the start, on a CPU a C++ compiler, and no --lora-dir. "
    "The same for all executors of a cluster.",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:0",
    show_envvar=True,
    help="Where to listen for other executors; port 0 takes a free one.",
)
@click.option(
    "--advertise",
    metavar="HOST",
    default="",
    show_envvar=True,
    show_default="the host of --listen",
    help="The address at which others reach this host, where --listen is 0.0.0.0 or [::].",
)
@click.option(
    "--node",
    default=node_name,
    show_envvar=True,
    show_default="the host's name",
    help="Executors share the steps of a picture only with those of the same node.",
)
@click.option(
    "--island",
    default="",
    show_envvar=True,
    show_default="the whole node",
    help="Only with those of the same island, of a node whose devices do not all share fast links.",
)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_envvar=True,
    help="CPU threads to compute with; with an executor on every core, more than one makes all slower.",
)
@click.option(
    "--sizes",
    type=SizeList(),
    default="256x256,512x512",
    show_envvar=True,
    help="Picture sizes whose step times are measured at the first start; others are interpolated.",
)
@click.option(
    "--batches",
    type=NumberList(),
    default="1,2,4",
    show_envvar=True,
    help="How many pictures are stepped together in these measurements; there are no larger batches.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=cache_folder,
    show_envvar=True,
    show_default="~/.cache/tetriserve",
    help="Where measured step times and the built-in model are kept.",
)
@click.option(
    "--grace",
    metavar="SECONDS",
    type=NOT_NEGATIVE,
    default=4.0,
    show_envvar=True,
    help="When stopping, how long the running order may still take.",
)
@click.option(
    "--group-timeout",
    metavar="SECONDS",
    type=Number(min=1),
    default=30.0,
    show_envvar=True,
    help="How long a step waits for a member of its group that is silent before it is given up.",
)
@click.option(
    "--roles",
    type=RoleList(),
    default=",".join(ROLES),
    show_envvar=True,
    help="What to do of each request; models that no role needs are not loaded. The cluster needs all three.",
)
@click.option(
    "--text-cache",
    metavar="MIB",
    type=click.IntRange(min=0),
    default=256,
    show_envvar=True,
    help="Memory of the device for encoded prompts, so that each is encoded once.",
)
@click.option(
    "--vae-tile",
    metavar="PIXELS",
    type=click.IntRange(min=0),
    default=2048,
    show_envvar=True,
    help="Decode pictures with a longer side than this in tiles of this side, which takes less memory and "
    "leaves faint differences; 0: never. The same for all executors of a cluster.",
)
@click.option(
    "--cache",
    "step_cache",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_envvar=True,
    help="Compute only each N-th denoising step in the middle of a request and use its output again for the "
    "others: faster, and another picture; 1: compute all. The same for all executors of a cluster.",
)
@click.option(
    "--lora-dir",
    type=click.Path(path_type=Path),
    show_envvar=True,
    show_default="none",
    help="Folder of LoRA adapters, NAME.safetensors each, that requests can name. The same for all executors "
    "of a cluster.",
)
@click.option(
    "--lora-cache",
    metavar="MIB",
    type=click.IntRange(min=0),
    default=1024,
    show_envvar=True,
    help="Memory of the device for adapters; the one in use is there in any case.",
)
@logs.options
@click.pass_context
def main(
    ctx: click.Context,
    scheduler: str,
    device: str,
    model: Path | None,
    dtype: str | None,
    attention: str,
    compile_mode: str | None,
    listen: str,
    advertise: str,
    node: str,
    island: str,
    threads: int,
    sizes: list[tuple[int, int]],
    batches: list[int],
    cache_dir: Path,
    grace: float,
    group_timeout: float,
    roles: frozenset[str],
    text_cache: int,
    vae_tile: int,
    step_cache: int,
    lora_dir: Path | None,
    lora_cache: int,
    log_format: str,
    log_level: str,
) -> None:
    """Run denoising steps on one device for a TetriServe scheduler.

    Start one executor for each GPU, or, without a GPU, for each core. It loads the model, measures how
    long its steps take (the first time only), joins the scheduler and then works until it is stopped.

    \b
        python -m executor --scheduler 127.0.0.1:7700 --device cpu
        python -m executor --scheduler gpu-head:7700 --device cuda:0 --model FLUX.1-dev
    """
    if ctx.invoked_subcommand is not None:
        return
    logs.setup(log_format, log_level)
    # From here to the moment when it serves, a signal just ends it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = Config(
            scheduler=scheduler,
            device=device,
            model=model,
            dtype=dtype or ("float32" if device == "cpu" else "bfloat16"),
            listen=listen,
            advertise=advertise,
            node=node,
            island=island,
            threads=threads,
            sizes=tuple(sizes),
            batches=tuple(batches),
            cache=cache_dir,
            grace_s=grace,
            group_timeout_s=group_timeout,
            roles=roles,
            text_cache=text_cache << 20,
            decoding_tile=vae_tile,
            step_cache=step_cache,
            attention=attention,
            compile_mode=compile_mode,
            lora_dir=lora_dir,
            lora_cache=lora_cache << 20,
        )
        check_addresses(config)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        _run(config)
    except KeyboardInterrupt:
        log.info("stopped before it was ready")
        # Where it broke into an `exec` of a library's import, Python would still end as if killed by SIGINT.
        os._exit(0)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _run(config: Config) -> None:
    """Run it; torch takes seconds to import, so that is done only now."""
    from executor import quiet  # noqa: F401  (before diffusers)
    from executor.link import Refused
    from executor.process import Broken, run

    try:
        run(config)
    except Refused as error:
        raise click.ClickException(f"the scheduler does not take this executor: {error}") from None
    except Broken as error:
        log.error("broken", why=error)
        sys.exit(1)


main.add_command(profile)
