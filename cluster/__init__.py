"""The ground every process stands on: settings, bundles, releases, audit, the command line."""
