"""`make bench`: prints each aim as met or missed; fails nothing."""

from tests.bench import audit, daemon, pipeline

pipeline.main()
daemon.main()
audit.main()
