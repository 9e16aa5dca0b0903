"""What a pipeline shows: results to report.json and its views."""
