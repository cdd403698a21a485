# Bits of every tensor of one point; choose another.
RUN, POINT = rows(points)[0]["run"], rows(points)[0]["point"]
own = [t for t in rows(tensors) if t["run"] == RUN and t["point"] == POINT]
roles = list(dict.fromkeys(t["role"] for t in own if t["block"] is not None))
blocks = sorted({t["block"] for t in own if t["block"] is not None})
if blocks:
    grid = [[float("nan")] * len(roles) for _ in blocks]
    for t in own:
        if t["block"] is not None:
            grid[blocks.index(t["block"])][roles.index(t["role"])] = t["bits"] / t["weights"]
    figure, axes = plt.subplots(figsize=(6, 0.3 * len(blocks) + 1.5))
    image = axes.imshow(grid, aspect="auto", cmap="cividis")
    axes.set_xticks(range(len(roles)), roles, rotation=40, ha="right")
    axes.set_yticks(range(len(blocks)), blocks)
    axes.set(ylabel="block", title=f"{labels[RUN]}: bits per weight")
    figure.colorbar(image)
    plt.show()
