"""`tetriserve`, also as `python -m tetriserve`."""

from tetriserve.entry import quietly_interrupted


def main() -> None:
    """Run the command line."""
    with quietly_interrupted():
        from tetriserve import cli
    cli.main(prog_name="tetriserve")


if __name__ == "__main__":
    main()
