curves("resident_bits_per_weight", "bits per weight in a runtime's memory")
plt.show()
