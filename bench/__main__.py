"""`python -m bench`."""

from tetriserve.entry import quietly_interrupted

if __name__ == "__main__":
    with quietly_interrupted():
        from bench.cli import main
    main(prog_name="python -m bench")
