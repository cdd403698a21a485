//! Roles of tensors: which part of the network a checkpoint's tensor is.
//!
//! Every decision that depends on the part is made here: the names of tensors, which of them share an input,
//! which may be coded, the order in which parts are coded. All supported families share the names of Hugging
//! Face's Llama; biases, query and key norms and a head of its own depend on the model
//! ([`crate::ModelConfig::tensors`]).

/// Name of the embedding's weight, which is also the head's when tied.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Name of the final norm's weight.
pub const FINAL_NORM: &str = "model.norm.weight";

/// Name of the output head's weight where it is not the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Prefix of the tensors of blocks.
const BLOCKS: &str = "model.layers.";

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Projection {
    /// Queries.
    Query,
    /// Keys.
    Key,
    /// Values.
    Value,
    /// From the heads back to the residual stream.
    Output,
    /// Gate of the feed-forward part (SwiGLU).
    Gate,
    /// Feed-forward part, widening.
    Up,
    /// Feed-forward part, back to the residual stream.
    Down,
}

impl Projection {
    /// All, in the order of computation; a projection's index here is `self as usize`.
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// Last part of its name, such as `q_proj`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Query => "q_proj",
            Self::Key => "k_proj",
            Self::Value => "v_proj",
            Self::Output => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// Module within the block, such as `self_attn.q_proj`.
    pub fn module(self) -> String {
        let part = if self <= Self::Output { "self_attn" } else { "mlp" };
        format!("{part}.{}", self.label())
    }

    /// Role of its weight in block `block`.
    pub const fn weight(self, block: usize) -> TensorRole {
        TensorRole::Linear { block, projection: self }
    }

    /// Role of its bias in block `block`.
    pub const fn bias(self, block: usize) -> TensorRole {
        TensorRole::Bias { block, projection: self }
    }

    /// First of the projections that read the same input: q, k and v share one, gate and up another. Runtimes
    /// compute such a set as one matrix, and its plain input Hessian is the same.
    pub const fn first_of_input(self) -> Self {
        match self {
            Self::Query | Self::Key | Self::Value => Self::Query,
            Self::Gate | Self::Up => Self::Gate,
            other => other,
        }
    }

    /// Order in which sequential coding takes the parts of a block, 0 to 3: q, k and v; o; gate and up; down.
    /// Projections of the same stage do not depend on each other's output.
    const fn stage(self) -> usize {
        match self {
            Self::Query | Self::Key | Self::Value => 0,
            Self::Output => 1,
            Self::Gate | Self::Up => 2,
            Self::Down => 3,
        }
    }
}

/// The part of the network that a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// The embedding, `[vocab, hidden]`; also the head when tied.
    Embedding,
    /// RMSNorm before attention, `[hidden]`.
    AttentionNorm {
        /// Index of the block.
        block: usize,
    },
    /// Weight of a linear layer, `[out, in]`.
    Linear {
        /// Index of the block.
        block: usize,
        /// Which layer.
        projection: Projection,
    },
    /// Bias of a linear layer, `[out]`.
    Bias {
        /// Index of the block.
        block: usize,
        /// Which layer.
        projection: Projection,
    },
    /// RMSNorm over each query head, `[head_dim]`.
    QueryNorm {
        /// Index of the block.
        block: usize,
    },
    /// RMSNorm over each key head, `[head_dim]`.
    KeyNorm {
        /// Index of the block.
        block: usize,
    },
    /// RMSNorm before the feed-forward part, `[hidden]`.
    MlpNorm {
        /// Index of the block.
        block: usize,
    },
    /// RMSNorm before the head, `[hidden]`.
    FinalNorm,
    /// The output head where it is not the embedding, `[vocab, hidden]`.
    Head,
}

impl TensorRole {
    /// Role of the tensor with this name in a checkpoint; `None` for a tensor that no supported family has.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            EMBEDDING => return Some(Self::Embedding),
            FINAL_NORM => return Some(Self::FinalNorm),
            HEAD => return Some(Self::Head),
            _ => {}
        }
        let (block, part) = name.strip_prefix(BLOCKS)?.split_once('.')?;
        let block = block.parse().ok()?;
        let (module, kind) = part.rsplit_once('.')?;
        let projection = Projection::ALL.into_iter().find(|p| p.module() == module);
        match (kind, projection) {
            ("weight", Some(projection)) => return Some(projection.weight(block)),
            ("bias", Some(projection)) => return Some(projection.bias(block)),
            ("weight", None) => {}
            _ => return None,
        }
        match module {
            "input_layernorm" => Some(Self::AttentionNorm { block }),
            "post_attention_layernorm" => Some(Self::MlpNorm { block }),
            "self_attn.q_norm" => Some(Self::QueryNorm { block }),
            "self_attn.k_norm" => Some(Self::KeyNorm { block }),
            _ => None,
        }
    }

    /// Name in a checkpoint; [`TensorRole::parse`] reads it back.
    pub fn name(self) -> String {
        let of = |block: usize, part: &str| format!("{BLOCKS}{block}.{part}");
        match self {
            Self::Embedding => EMBEDDING.into(),
            Self::AttentionNorm { block } => of(block, "input_layernorm.weight"),
            Self::Linear { block, projection } => of(block, &format!("{}.weight", projection.module())),
            Self::Bias { block, projection } => of(block, &format!("{}.bias", projection.module())),
            Self::QueryNorm { block } => of(block, "self_attn.q_norm.weight"),
            Self::KeyNorm { block } => of(block, "self_attn.k_norm.weight"),
            Self::MlpNorm { block } => of(block, "post_attention_layernorm.weight"),
            Self::FinalNorm => FINAL_NORM.into(),
            Self::Head => HEAD.into(),
        }
    }

    /// Index of its block; `None` outside blocks.
    pub const fn block(self) -> Option<usize> {
        match self {
            Self::AttentionNorm { block }
            | Self::Linear { block, .. }
            | Self::Bias { block, .. }
            | Self::QueryNorm { block }
            | Self::KeyNorm { block }
            | Self::MlpNorm { block } => Some(block),
            Self::Embedding | Self::FinalNorm | Self::Head => None,
        }
    }

    /// The linear layer that it is the weight of.
    pub const fn projection(self) -> Option<Projection> {
        match self {
            Self::Linear { projection, .. } => Some(projection),
            _ => None,
        }
    }

    /// True for weights and biases of linear layers of blocks.
    pub const fn is_of_linear_layer(self) -> bool {
        matches!(self, Self::Linear { .. } | Self::Bias { .. })
    }

    /// True for the matrices, which calibration covers and which may be coded: linear layers, embedding, head.
    pub const fn may_be_coded(self) -> bool {
        matches!(self, Self::Embedding | Self::Linear { .. } | Self::Head)
    }

    /// True for the matrices that the policy `safe` keeps at FP8 or better: embedding, head, q, k and v.
    pub const fn is_floored_by_safe(self) -> bool {
        use Projection::{Key, Query, Value};
        matches!(self, Self::Embedding | Self::Head | Self::Linear { projection: Query | Key | Value, .. })
    }

    /// Order in which sequential coding takes tensors: the embedding first, then blocks from the first to the
    /// last and in each the parts that do not depend on each other's output together, everything else last.
    pub const fn coding_order(self) -> usize {
        match self {
            Self::Embedding => 0,
            Self::Linear { block, projection } => 1 + (1 + Projection::Down.stage()) * block + projection.stage(),
            _ => usize::MAX,
        }
    }

    /// The weight of the first linear layer that reads the same input, see [`Projection::first_of_input`];
    /// `None` for tensors other than weights of linear layers.
    pub const fn first_of_input(self) -> Option<Self> {
        match self {
            Self::Linear { block, projection } => Some(projection.first_of_input().weight(block)),
            _ => None,
        }
    }
}

/// Last part of a tensor's name without `weight`, such as `q_proj` or `embed_tokens`: groups the rows of tables.
pub fn label_of(name: &str) -> &str {
    let name = name.trim_end_matches(".weight");
    name.rsplit('.').next().unwrap_or(name)
}

/// Index of the block that the tensor `name` belongs to, for tensors with and without a role.
pub fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix(BLOCKS)?.split('.').next()?.parse().ok()
}

/// Order in which sequential coding takes the tensor `name`, see [`TensorRole::coding_order`].
pub fn coding_order(name: &str) -> usize {
    TensorRole::parse(name).map_or(usize::MAX, TensorRole::coding_order)
}

/// True for the name of a weight of a linear layer of a block.
pub fn is_linear(name: &str) -> bool {
    TensorRole::parse(name).is_some_and(|role| role.projection().is_some())
}

/// Name of the set of linear layers that read the same input, such as `model.layers.3.self_attn.q_proj` for the
/// weights of q, k and v of block 3; `None` for other tensors.
pub fn input_group(name: &str) -> Option<String> {
    let first = TensorRole::parse(name)?.first_of_input()?.name();
    first.strip_suffix(".weight").map(String::from)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use waterfill_checkpoint::Checkpoint;
    use waterfill_fixture::{FAMILIES, small_config_of, write_random};

    use super::*;
    use crate::config::ModelConfig;

    /// Every tensor of a checkpoint of every family has a role, and the configuration knows of each its shape.
    #[test]
    fn roles_cover_the_checkpoints_of_every_family() {
        for family in FAMILIES {
            let dir = tempfile::tempdir().unwrap();
            write_random(dir.path(), &small_config_of(family).unwrap(), 5).unwrap();
            let config = ModelConfig::open(dir.path()).unwrap();
            let expected: BTreeMap<TensorRole, Vec<usize>> = config.tensors().into_iter().collect();
            let checkpoint = Checkpoint::open(dir.path()).unwrap();
            let role = |name: &str| TensorRole::parse(name).unwrap_or_else(|| panic!("{family}: no role for {name}"));
            let found = checkpoint.tensors().map(|t| (role(&t.name), t.shape.clone())).collect();
            assert_eq!(expected, found, "{family}");
            assert!(checkpoint.tensors().all(|t| role(&t.name).name() == t.name), "{family}");
        }
    }

    #[test]
    fn families_differ_by_biases_norms_and_head() {
        let roles = |family: &str| -> Vec<TensorRole> {
            let dir = tempfile::tempdir().unwrap();
            write_random(dir.path(), &small_config_of(family).unwrap(), 5).unwrap();
            ModelConfig::open(dir.path()).unwrap().tensors().into_iter().map(|(role, _)| role).collect()
        };
        let (llama, qwen2, qwen3) = (roles("llama3-8b"), roles("qwen2.5-7b"), roles("qwen3-4b"));
        let has_bias = |roles: &[TensorRole], p: Projection| roles.contains(&p.bias(1));
        assert!(!has_bias(&llama, Projection::Query));
        assert!(has_bias(&qwen2, Projection::Key) && !has_bias(&qwen2, Projection::Output));
        assert!(
            qwen3.contains(&TensorRole::QueryNorm { block: 0 }) && !qwen2.contains(&TensorRole::KeyNorm { block: 0 })
        );
        assert!(llama.contains(&TensorRole::Head));
    }

    #[test]
    fn groups_and_order_follow_the_data_flow() {
        let group = |name: &str| input_group(name).unwrap();
        assert_eq!(group("model.layers.3.self_attn.v_proj.weight"), "model.layers.3.self_attn.q_proj");
        assert_eq!(group("model.layers.3.mlp.up_proj.weight"), "model.layers.3.mlp.gate_proj");
        assert_eq!(group("model.layers.3.mlp.down_proj.weight"), "model.layers.3.mlp.down_proj");
        assert!(input_group(EMBEDDING).is_none() && input_group("model.layers.3.self_attn.q_proj.bias").is_none());
        let roles = [
            TensorRole::Embedding,
            Projection::Key.weight(0),
            Projection::Output.weight(0),
            Projection::Up.weight(0),
            Projection::Down.weight(0),
            Projection::Query.weight(1),
            TensorRole::Head,
        ];
        assert!(roles.map(TensorRole::coding_order).is_sorted_by(|a, b| a < b));
        assert_eq!(Projection::Key.weight(0).coding_order(), Projection::Query.weight(0).coding_order());
    }

    #[test]
    fn names_of_other_tensors_have_no_role() {
        for name in [
            "model.layers.x.mlp.up_proj.weight",
            "model.layers.3.mlp.up_proj",
            "model.layers.3.mlp.up_proj.lora_A.weight",
            "model.layers.3.self_attn.rotary_emb.inv_freq",
            "model.layers.3.self_attn.q_norm.bias",
            "transformer.wte.weight",
        ] {
            assert_eq!(TensorRole::parse(name), None, "{name}");
        }
        assert_eq!(label_of("model.layers.3.self_attn.q_proj.weight"), "q_proj");
        assert_eq!(label_of("model.layers.3.self_attn.q_proj.bias"), "bias");
        assert_eq!(label_of(EMBEDDING), "embed_tokens");
        assert_eq!(block_of("model.layers.3.self_attn.rotary_emb.inv_freq"), Some(3));
    }
}
