"""The ground a stage stands on: artifacts, exit codes, seeds, progress, devices, provenance.

Nothing here knows an image, a head or a metric.
"""
