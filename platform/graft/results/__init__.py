"""What came out: records, statistics, tables, plots and the report."""
