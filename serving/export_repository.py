def export_repository(*a, **k): raise NotImplementedError
