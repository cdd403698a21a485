//! Rate-distortion points per tile and greedy minimisation of J = dLoss + lambda * bits
