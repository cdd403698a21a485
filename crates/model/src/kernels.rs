//! Fused operations of a block with their gradients, for f32 on the CPU. candle's own fused
//! operations have no gradient, and its composed ones move far more memory than they compute.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder, s};

/// Rows of attention weights that are computed together; later columns are masked and left out.
const ROWS: usize = 64;

/// Elements of a contiguous argument.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("argument is not contiguous"),
    }
}

fn elements(t: &Tensor) -> Result<Vec<f32>> {
    t.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, t: &Tensor) -> Result<Option<Tensor>> {
    Ok(Some(Tensor::from_vec(values, t.shape(), t.device())?))
}

/// RMSNorm (Zhang & Sennrich 2019) over the last dimension: arguments x and weight.
pub(crate) struct Norm {
    pub eps: f32,
}

impl Norm {
    /// Reciprocal root mean square of a row.
    fn scale(&self, row: &[f32]) -> f32 {
        1.0 / (row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(x, lx)?, contiguous(w, lw)?);
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks_exact(w.len()) {
            let scale = self.scale(row);
            out.extend(row.iter().zip(w).map(|(x, w)| x * scale * w));
        }
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (xs, ws, gs) = (elements(x)?, elements(w)?, elements(grad)?);
        let width = ws.len();
        let (mut dx, mut dw) = (Vec::with_capacity(xs.len()), vec![0.0; width]);
        for (row, g) in xs.chunks_exact(width).zip(gs.chunks_exact(width)) {
            let scale = self.scale(row);
            let dot: f32 = row.iter().zip(g).zip(&ws).map(|((x, g), w)| x * g * w).sum();
            let pull = dot * scale * scale * scale / width as f32;
            dx.extend(row.iter().zip(g).zip(&ws).map(|((x, g), w)| g * w * scale - x * pull));
            dw.iter_mut().zip(row.iter().zip(g)).for_each(|(d, (x, g))| *d += x * scale * g);
        }
        Ok((like(dx, x)?, like(dw, w)?))
    }
}

/// silu(gate) * up.
pub(crate) struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, lg: &Layout, up: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (contiguous(gate, lg)?, contiguous(up, lu)?);
        let out = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        Ok((CpuStorage::F32(out), lg.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gs, us, ds) = (elements(gate)?, elements(up)?, elements(grad)?);
        let (mut dg, mut du) = (Vec::with_capacity(gs.len()), Vec::with_capacity(gs.len()));
        for ((g, u), d) in gs.iter().zip(&us).zip(&ds) {
            let sigmoid = 1.0 / (1.0 + (-g).exp());
            dg.push(d * u * sigmoid * (1.0 + g * (1.0 - sigmoid)));
            du.push(d * g * sigmoid);
        }
        Ok((like(dg, gate)?, like(du, up)?))
    }
}

/// Causal grouped-query attention with rotary positions: arguments q `[batch, tokens, heads * dim]`,
/// k and v `[batch, tokens, kv_heads * dim]`.
pub(crate) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub tokens: usize,
    /// `[tokens or more, dim / 2]`.
    pub cos: Arc<Vec<f32>>,
    pub sin: Arc<Vec<f32>>,
}

/// One head of a sequence, `[tokens, dim]` inside `[tokens, heads * dim]`.
fn head<'a>(sequence: &'a [f32], at: usize, tokens: usize, dim: usize) -> ArrayView2<'a, f32> {
    let width = sequence.len() / tokens;
    let shape = (tokens, dim).strides((width, 1));
    ArrayView2::from_shape(shape, &sequence[at * dim..]).expect("a head lies inside its sequence")
}

fn head_mut<'a>(sequence: &'a mut [f32], at: usize, tokens: usize, dim: usize) -> ArrayViewMut2<'a, f32> {
    let width = sequence.len() / tokens;
    let shape = (tokens, dim).strides((width, 1));
    ArrayViewMut2::from_shape(shape, &mut sequence[at * dim..]).expect("a head lies inside its sequence")
}

impl Attention {
    /// Rotates pairs (i, i + dim / 2) by the angle of their position; back when `sign` is -1.
    fn rotate(&self, x: &mut Array2<f32>, sign: f32, scale: f32) {
        let half = self.dim / 2;
        for (t, mut row) in x.outer_iter_mut().enumerate() {
            for i in 0..half {
                let (cos, sin) = (self.cos[t * half + i] * scale, self.sin[t * half + i] * sign * scale);
                let (a, b) = (row[i], row[i + half]);
                row[i] = a * cos - b * sin;
                row[i + half] = a * sin + b * cos;
            }
        }
    }

    /// Query and key heads in their rotated form; the query carries 1 / sqrt(dim).
    fn rotated(&self, sequence: &[f32], at: usize, scale: f32) -> Array2<f32> {
        let mut x = head(sequence, at, self.tokens, self.dim).to_owned();
        self.rotate(&mut x, 1.0, scale);
        x
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// Attention weights of query rows `first..last` over the keys up to `last`.
    fn weights(&self, q: &Array2<f32>, k: &Array2<f32>, first: usize, last: usize) -> Array2<f32> {
        let mut p = Array2::zeros((last - first, last));
        general_mat_mul(1.0, &q.slice(s![first..last, ..]), &k.slice(s![..last, ..]).t(), 0.0, &mut p);
        for (i, mut row) in p.outer_iter_mut().enumerate() {
            let row = row.as_slice_mut().expect("rows are contiguous");
            let (seen, hidden) = row.split_at_mut(first + i + 1);
            hidden.fill(0.0);
            let largest = seen.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            seen.iter_mut().for_each(|v| *v = (*v - largest).exp());
            let total: f32 = seen.iter().sum();
            seen.iter_mut().for_each(|v| *v /= total);
        }
        p
    }

    fn blocks(&self) -> impl Iterator<Item = (usize, usize)> {
        let tokens = self.tokens;
        (0..tokens).step_by(ROWS).map(move |first| (first, (first + ROWS).min(tokens)))
    }

    /// Splits into sequences: q (or out), k and v have their own widths.
    fn sequences<'a>(&self, values: &'a [f32], heads: usize) -> impl Iterator<Item = &'a [f32]> {
        values.chunks_exact(self.tokens * heads * self.dim)
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (contiguous(q, lq)?, contiguous(k, lk)?, contiguous(v, lv)?);
        let mut out = vec![0.0; q.len()];
        let groups = self.heads / self.kv_heads;
        let keys = self.sequences(k, self.kv_heads).zip(self.sequences(v, self.kv_heads));
        let outs = out.chunks_exact_mut(self.tokens * self.heads * self.dim);
        for ((q, (k, v)), out) in self.sequences(q, self.heads).zip(keys).zip(outs) {
            for shared in 0..self.kv_heads {
                let (k, v) = (self.rotated(k, shared, 1.0), head(v, shared, self.tokens, self.dim));
                for h in shared * groups..(shared + 1) * groups {
                    let q = self.rotated(q, h, self.scale());
                    let mut o = head_mut(out, h, self.tokens, self.dim);
                    for (first, last) in self.blocks() {
                        let p = self.weights(&q, &k, first, last);
                        general_mat_mul(1.0, &p, &v.slice(s![..last, ..]), 0.0, &mut o.slice_mut(s![first..last, ..]));
                    }
                }
            }
        }
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (qs, ks, vs, gs) = (elements(q)?, elements(k)?, elements(v)?, elements(grad)?);
        let (mut dq, mut dk, mut dv) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
        let (tokens, dim, groups) = (self.tokens, self.dim, self.heads / self.kv_heads);
        let (wide, narrow) = (tokens * self.heads * dim, tokens * self.kv_heads * dim);
        for n in 0..qs.len() / wide {
            let (wide, narrow) = (n * wide..(n + 1) * wide, n * narrow..(n + 1) * narrow);
            for shared in 0..self.kv_heads {
                let k = self.rotated(&ks[narrow.clone()], shared, 1.0);
                let v = head(&vs[narrow.clone()], shared, tokens, dim);
                let mut k_sum = Array2::<f32>::zeros((tokens, dim));
                let mut v_sum = head_mut(&mut dv[narrow.clone()], shared, tokens, dim);
                for h in shared * groups..(shared + 1) * groups {
                    let q = self.rotated(&qs[wide.clone()], h, self.scale());
                    let g = head(&gs[wide.clone()], h, tokens, dim);
                    let mut q_sum = Array2::<f32>::zeros((tokens, dim));
                    for (first, last) in self.blocks() {
                        let p = self.weights(&q, &k, first, last);
                        let g = g.slice(s![first..last, ..]);
                        general_mat_mul(1.0, &p.t(), &g, 1.0, &mut v_sum.slice_mut(s![..last, ..]));
                        let mut ds = g.dot(&v.slice(s![..last, ..]).t());
                        for (mut d, p) in ds.outer_iter_mut().zip(p.outer_iter()) {
                            let mean = d.dot(&p);
                            d.zip_mut_with(&p, |d, p| *d = p * (*d - mean));
                        }
                        let keys = k.slice(s![..last, ..]);
                        general_mat_mul(1.0, &ds, &keys, 0.0, &mut q_sum.slice_mut(s![first..last, ..]));
                        let queries = q.slice(s![first..last, ..]);
                        general_mat_mul(1.0, &ds.t(), &queries, 1.0, &mut k_sum.slice_mut(s![..last, ..]));
                    }
                    self.rotate(&mut q_sum, -1.0, self.scale());
                    head_mut(&mut dq[wide.clone()], h, tokens, dim).assign(&q_sum);
                }
                self.rotate(&mut k_sum, -1.0, 1.0);
                head_mut(&mut dk[narrow.clone()], shared, tokens, dim).assign(&k_sum);
            }
        }
        Ok((like(dq, q)?, like(dk, k)?, like(dv, v)?))
    }
}
