"""stub"""
def plot_sweep(rows, swept):
    return None
