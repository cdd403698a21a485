//! The forward pass against candle-transformers' own Llama on the same weights.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use waterfill_codec::Dtype;
use waterfill_fixture::{Shape, generate};
use waterfill_model::{EMBEDDING, Model, lm_head_name};

#[test]
fn logits_equal_candle_transformers() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { tied, dtype: Dtype::F32, ..Shape::default() };
        let fixture = generate(dir.path(), 11, &shape).unwrap();
        let model = Model::open(&fixture.model, &Device::Cpu).unwrap();
        let c = model.config.clone();
        let rows: Vec<Vec<u32>> = (0..3).map(|r| (0..20).map(|i| (i * 7 + r * 5) % c.vocab as u32).collect()).collect();
        let batch = vec![rows.iter().map(Vec::as_slice).collect::<Vec<_>>()];

        let mut x = model.embed(&batch).unwrap().remove(0);
        for i in 0..c.layers {
            x = model.block(i).unwrap().forward(&x).unwrap();
        }
        let head = model.head().unwrap();
        let last = x.narrow(1, 19, 1).unwrap().squeeze(1).unwrap();
        let ours = head.logits(&head.normalise(&last).unwrap()).unwrap();

        let config = Config {
            hidden_size: c.hidden,
            intermediate_size: c.intermediate,
            vocab_size: c.vocab,
            num_hidden_layers: c.layers,
            num_attention_heads: c.heads,
            num_key_value_heads: c.kv_heads,
            use_flash_attn: false,
            rms_norm_eps: c.norm_eps,
            rope_theta: c.rope_theta as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: c.positions,
            tie_word_embeddings: tied,
        };
        let tensors = model
            .checkpoint()
            .tensors()
            .map(|t| {
                let values = model.checkpoint().read(&t.name).unwrap().to_f32();
                (t.name.clone(), Tensor::from_vec(values, t.shape.as_slice(), &Device::Cpu).unwrap())
            })
            .collect();
        let builder = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let reference = Llama::load(builder, &config).unwrap();
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let ids = Tensor::from_vec(rows.concat(), (3, 20), &Device::Cpu).unwrap();
        let theirs = reference.forward(&ids, 0, &mut cache).unwrap();

        let worst = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst < 1e-4, "tied {tied}: largest difference of a logit {worst}");
        assert_eq!(lm_head_name(&c) == EMBEDDING, tied);
    }
}
