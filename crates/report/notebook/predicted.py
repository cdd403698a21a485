figure, axes = plt.subplots(figsize=(4.5, 4.5))
for n, (run, label) in enumerate(labels.items()):
    own = [p for p in rows(points) if p["run"] == run and p["kl"] and p["predicted_kl"]]
    if own:
        axes.plot([p["predicted_kl"] for p in own], [p["kl"] for p in own], "o", label=label, color=COLOURS[n % len(COLOURS)])
both = [v for p in rows(points) if p["kl"] and p["predicted_kl"] for v in (p["kl"], p["predicted_kl"])]
if both:
    axes.plot([min(both), max(both)], [min(both), max(both)], color="#888888", linewidth=1)
axes.set(xscale="log", yscale="log", xlabel="predicted KL, nats per token", ylabel="measured KL, nats per token")
axes.legend(fontsize=7)
plt.show()
