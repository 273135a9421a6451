"""What specs do, before and after: compare two revisions of a folder of specs by their effect on reference models."""
