"""Every knob of the pipeline, a section a file: strict pydantic models, so a misspelt key or a wild value never starts a task.

Each top-level section is one input of ``workflows/pipeline.py:bard_pipeline`` and one key of a ``configs/*.yaml``, so a stage is
cached by exactly the sections it reads. Units are in the names (``timeout_s``, ``max_pixels``).
"""
