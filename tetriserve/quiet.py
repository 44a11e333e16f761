"""Keep gRPC's own notes out of the logs. Import it before grpc, which looks only once.

Its core writes them past `logging`, so that a log of JSON lines would not be one. Its errors still come. A
user's own setting wins.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
