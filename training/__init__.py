"""Workstation side of idql_ros: datasets, the IDQL learner and the export of policy files."""
