"""The harness behind docs/RESULTS.md: what is compared, how each row is run, how the page is rendered."""
