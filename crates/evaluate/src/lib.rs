//! Perplexity, KL, top-1 and multiple choice of the decoded file
