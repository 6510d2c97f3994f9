"""Jinja templates of the reports, read as package resources of ``mlflow_relabel_audit.templates``."""
