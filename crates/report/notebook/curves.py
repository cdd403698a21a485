def curves(size, name):
    figure, axes = plt.subplots(figsize=(6, 4))
    for n, (run, label) in enumerate(labels.items()):
        own = [p for p in rows(points) if p["run"] == run and p["kl"] and p[size] is not None]
        own.sort(key=lambda p: p[size])
        if own:
            axes.errorbar(
                [p[size] for p in own], [p["kl"] for p in own], yerr=[1.96 * p["kl_se"] for p in own],
                label=label, marker="o", markersize=3, linewidth=1, color=COLOURS[n % len(COLOURS)],
            )
    axes.set(yscale="log", xlabel=name, ylabel="KL(original || compressed), nats per token")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure

curves("bits_per_weight", "bits per weight of the files")
plt.show()
