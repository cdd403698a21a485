//! Address, cache, token and offline mode of the hub.

use std::path::PathBuf;

use hf_hub::Cache;

/// Settings of access to the hub.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub.
    pub endpoint: String,
    /// Folder of all cached models.
    pub cache: PathBuf,
    /// Token of the user.
    pub token: Option<String>,
    /// True if only the cache may be used.
    pub offline: bool,
}

impl Settings {
    /// Settings from the environment variables of `huggingface_hub`: `HF_HUB_CACHE` or `HF_HOME`,
    /// `HF_ENDPOINT`, `HF_TOKEN` or the file that its login leaves, `HF_HUB_OFFLINE` or
    /// `TRANSFORMERS_OFFLINE`.
    pub fn from_env() -> Self {
        let variable = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let cache = Cache::from_env();
        let yes = |name: &str| {
            variable(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_lowercase().as_str()))
        };
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(|| cache.token()),
            cache: variable("HF_HUB_CACHE").map_or_else(|| cache.path().clone(), PathBuf::from),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
        }
    }
}
