"""An export that is cut off behind its first layer."""

from swift.export import layerwise


def cut_once(monkeypatch) -> list[int]:
    """The second call for a layer ends the command as Ctrl-C does; the list holds the numbers of the layers begun."""
    real, seen = layerwise._quantize_layer, []

    def cut(job, layer, index, calls, hidden):
        seen.append(index)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(job, layer, index, calls, hidden)

    monkeypatch.setattr(layerwise, "_quantize_layer", cut)
    return seen
