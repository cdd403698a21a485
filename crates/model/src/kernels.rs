//! Fused operations of a block with their gradients, for f32 on the CPU. candle's own fused
//! operations have no gradient, and its composed ones move far more memory than they compute.

use std::ops::{Deref, Range};
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, ShapeBuilder, s};
use rayon::prelude::*;

/// Rows of attention weights that are computed together; later columns are masked and left out.
const ROWS: usize = 64;
/// Elements of a task of an elementwise operation.
const ELEMENTS: usize = 1 << 16;

/// Elements of a contiguous argument.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("argument is not contiguous"),
    }
}

/// Elements of a contiguous tensor, where they lie.
struct Elements<G> {
    storage: G,
    range: Range<usize>,
}

impl<G: Deref<Target = Storage>> Deref for Elements<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("checked by elements()"),
        }
    }
}

fn elements(t: &Tensor) -> Result<Elements<impl Deref<Target = Storage>>> {
    let (storage, layout) = t.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Elements { storage, range: start..end }),
        _ => bail!("argument is not a contiguous f32 tensor on the CPU"),
    }
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

    /// Elements of whole rows that one task takes.
    fn task(width: usize) -> usize {
        (ELEMENTS / width).max(1) * width
    }

    /// Gradient with respect to x from the gradient of the result.
    pub fn input_gradient(&self, x: &Tensor, weight: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (x, gradient) = (x.contiguous()?, gradient.contiguous()?);
        let (xs, ws, gs) = (elements(&x)?, elements(weight)?, elements(&gradient)?);
        let (xs, ws, gs): (&[f32], &[f32], &[f32]) = (&xs, &ws, &gs);
        let width = ws.len();
        let mut dx = vec![0.0; xs.len()];
        let task = Self::task(width);
        dx.par_chunks_mut(task).zip(xs.par_chunks(task).zip(gs.par_chunks(task))).for_each(|(dx, (xs, gs))| {
            let rows = xs.chunks_exact(width).zip(gs.chunks_exact(width));
            for (dx, (row, g)) in dx.chunks_exact_mut(width).zip(rows) {
                let scale = self.scale(row);
                let dot: f32 = row.iter().zip(g).zip(ws).map(|((x, g), w)| x * g * w).sum();
                let pull = dot * scale * scale * scale / width as f32;
                let terms = row.iter().zip(g).zip(ws).map(|((x, g), w)| g * w * scale - x * pull);
                dx.iter_mut().zip(terms).for_each(|(d, term)| *d = term);
            }
        });
        Tensor::from_vec(dx, x.shape(), x.device())
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (contiguous(x, lx)?, contiguous(w, lw)?);
        let mut out = vec![0.0; x.len()];
        let task = Self::task(w.len());
        out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
            for (out, row) in out.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                let scale = self.scale(row);
                out.iter_mut().zip(row.iter().zip(w)).for_each(|(o, (x, w))| *o = x * scale * w);
            }
        });
        Ok((CpuStorage::F32(out), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (x, grad) = (x.contiguous()?, grad.contiguous()?);
        let dx = self.input_gradient(&x, w, &grad)?;
        let (xs, gs) = (elements(&x)?, elements(&grad)?);
        let width = w.elem_count();
        let mut dw = vec![0.0; width];
        for (row, g) in xs.chunks_exact(width).zip(gs.chunks_exact(width)) {
            let scale = self.scale(row);
            dw.iter_mut().zip(row.iter().zip(g)).for_each(|(d, (x, g))| *d += x * scale * g);
        }
        Ok((Some(dx), like(dw, w)?))
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
        let mut out = vec![0.0; gate.len()];
        let tasks = gate.par_chunks(ELEMENTS).zip(up.par_chunks(ELEMENTS));
        out.par_chunks_mut(ELEMENTS).zip(tasks).for_each(|(out, (gate, up))| {
            out.iter_mut().zip(gate.iter().zip(up)).for_each(|(o, (g, u))| *o = g / (1.0 + (-g).exp()) * u);
        });
        Ok((CpuStorage::F32(out), lg.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gate, up, grad) = (gate.contiguous()?, up.contiguous()?, grad.contiguous()?);
        let (gs, us, ds) = (elements(&gate)?, elements(&up)?, elements(&grad)?);
        let (mut dg, mut du) = (vec![0.0; gs.len()], vec![0.0; gs.len()]);
        let tasks = gs.par_chunks(ELEMENTS).zip(us.par_chunks(ELEMENTS)).zip(ds.par_chunks(ELEMENTS));
        let outs = dg.par_chunks_mut(ELEMENTS).zip(du.par_chunks_mut(ELEMENTS));
        outs.zip(tasks).for_each(|((dg, du), ((gs, us), ds))| {
            for ((dg, du), ((g, u), d)) in dg.iter_mut().zip(du).zip(gs.iter().zip(us).zip(ds)) {
                let sigmoid = 1.0 / (1.0 + (-g).exp());
                *dg = d * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
                *du = d * g * sigmoid;
            }
        });
        Ok((like(dg, &gate)?, like(du, &up)?))
    }
}

/// Causal grouped-query attention with rotary positions: arguments q `[batch, tokens, heads * dim]`,
/// k and v `[batch, tokens, kv_heads * dim]`.
pub(crate) struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub dim: usize,
    pub tokens: usize,
    /// Keys that a query looks at, itself included.
    pub window: usize,
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
            let (hidden, seen) = seen.split_at_mut(seen.len().saturating_sub(self.window));
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

    /// Runs `f` for every sequence and key head, results in order.
    fn for_heads<T: Send>(&self, q: &[f32], f: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
        let sequences = q.len() / (self.tokens * self.heads * self.dim);
        let jobs = (0..sequences * self.kv_heads).into_par_iter();
        jobs.map(|job| f(job / self.kv_heads, job % self.kv_heads)).collect()
    }

    /// Elements of sequence `n`, of queries or of keys and values.
    fn sequence(&self, n: usize, heads: usize) -> Range<usize> {
        let length = self.tokens * heads * self.dim;
        n * length..(n + 1) * length
    }

    /// Query heads that share a key head.
    fn group(&self, shared: usize) -> Range<usize> {
        let groups = self.heads / self.kv_heads;
        shared * groups..(shared + 1) * groups
    }

    /// Outputs of the query heads that share a key head.
    fn outputs(&self, q: &[f32], k: &[f32], v: &[f32], shared: usize) -> Vec<Array2<f32>> {
        let (k, v) = (self.rotated(k, shared, 1.0), head(v, shared, self.tokens, self.dim));
        let output = |h| {
            let q = self.rotated(q, h, self.scale());
            let mut o = Array2::zeros((self.tokens, self.dim));
            for (first, last) in self.blocks() {
                let p = self.weights(&q, &k, first, last);
                general_mat_mul(1.0, &p, &v.slice(s![..last, ..]), 0.0, &mut o.slice_mut(s![first..last, ..]));
            }
            o
        };
        self.group(shared).map(output).collect()
    }

    /// Gradients of the query heads that share a key head, of that and of its value head.
    fn gradients(&self, [q, k, v, g]: [&[f32]; 4], shared: usize) -> HeadGradients {
        let (tokens, dim) = (self.tokens, self.dim);
        let k = self.rotated(k, shared, 1.0);
        let v = head(v, shared, tokens, dim);
        let mut sums = HeadGradients { q: vec![], k: Array2::zeros((tokens, dim)), v: Array2::zeros((tokens, dim)) };
        for h in self.group(shared) {
            let q = self.rotated(q, h, self.scale());
            let g = head(g, h, tokens, dim);
            let mut q_sum = Array2::<f32>::zeros((tokens, dim));
            for (first, last) in self.blocks() {
                let p = self.weights(&q, &k, first, last);
                let g = g.slice(s![first..last, ..]);
                general_mat_mul(1.0, &p.t(), &g, 1.0, &mut sums.v.slice_mut(s![..last, ..]));
                let mut ds = g.dot(&v.slice(s![..last, ..]).t());
                for (mut d, p) in ds.outer_iter_mut().zip(p.outer_iter()) {
                    let mean = d.dot(&p);
                    d.zip_mut_with(&p, |d, p| *d = p * (*d - mean));
                }
                let keys = k.slice(s![..last, ..]);
                general_mat_mul(1.0, &ds, &keys, 0.0, &mut q_sum.slice_mut(s![first..last, ..]));
                let queries = q.slice(s![first..last, ..]);
                general_mat_mul(1.0, &ds.t(), &queries, 1.0, &mut sums.k.slice_mut(s![..last, ..]));
            }
            self.rotate(&mut q_sum, -1.0, self.scale());
            sums.q.push(q_sum);
        }
        self.rotate(&mut sums.k, -1.0, 1.0);
        sums
    }
}

/// Gradients `[tokens, dim]` of heads.
struct HeadGradients {
    q: Vec<Array2<f32>>,
    k: Array2<f32>,
    v: Array2<f32>,
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
        let outputs = self.for_heads(q, |n, shared| {
            let (wide, narrow) = (self.sequence(n, self.heads), self.sequence(n, self.kv_heads));
            self.outputs(&q[wide], &k[narrow.clone()], &v[narrow], shared)
        });
        let mut out = vec![0.0; q.len()];
        for (job, outputs) in outputs.into_iter().enumerate() {
            let (n, shared) = (job / self.kv_heads, job % self.kv_heads);
            for (h, o) in self.group(shared).zip(outputs) {
                head_mut(&mut out[self.sequence(n, self.heads)], h, self.tokens, self.dim).assign(&o);
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
        let [q, k, v, grad] = [q.contiguous()?, k.contiguous()?, v.contiguous()?, grad.contiguous()?];
        let (qs, ks, vs, gs) = (elements(&q)?, elements(&k)?, elements(&v)?, elements(&grad)?);
        let (qs, ks, vs, gs): (&[f32], &[f32], &[f32], &[f32]) = (&qs, &ks, &vs, &gs);
        let gradients = self.for_heads(qs, |n, shared| {
            let (wide, narrow) = (self.sequence(n, self.heads), self.sequence(n, self.kv_heads));
            self.gradients([&qs[wide.clone()], &ks[narrow.clone()], &vs[narrow], &gs[wide]], shared)
        });
        let (mut dq, mut dk, mut dv) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
        for (job, sums) in gradients.into_iter().enumerate() {
            let (n, shared) = (job / self.kv_heads, job % self.kv_heads);
            for (h, sum) in self.group(shared).zip(&sums.q) {
                head_mut(&mut dq[self.sequence(n, self.heads)], h, self.tokens, self.dim).assign(sum);
            }
            let narrow = self.sequence(n, self.kv_heads);
            head_mut(&mut dk[narrow.clone()], shared, self.tokens, self.dim).assign(&sums.k);
            head_mut(&mut dv[narrow], shared, self.tokens, self.dim).assign(&sums.v);
        }
        Ok((like(dq, &q)?, like(dk, &k)?, like(dv, &v)?))
    }
}
