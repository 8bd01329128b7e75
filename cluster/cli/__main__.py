"""`python -m cluster.cli`: how a Ray job runs the command."""

from cluster.cli import main

if __name__ == "__main__":
    main()
