"""For all tests."""

import signal

# Started in the background by a shell, the tests inherit an ignored SIGINT, and so would the processes that
# they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
