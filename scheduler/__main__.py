"""`python -m scheduler`."""

from tetriserve.entry import quietly_interrupted

if __name__ == "__main__":
    with quietly_interrupted():
        from scheduler.command import main
    main(prog_name="python -m scheduler")
