//! Sections 2, 4 and 6.

use super::check;
use super::entropy::{Bit, Coder, Int, bit_model, int_model, tree_model};
use super::lattice::{Groups, Lattice};

#[derive(Default)]
pub struct Tensor {
    pub dtype: u8,
    pub lanes: usize,
    pub slice_rows: usize,
    pub rows: usize,
    pub cols: usize,
    pub step_base: i32,
    pub sigma_base: i32,
    pub tools: u32,
    pub digest: Vec<u8>,
    pub row_scale: Vec<i32>,
    pub col_scale: Vec<i32>,
    pub row_sigma: Vec<i32>,
    pub col_sigma: Vec<i32>,
    pub linear: Vec<i32>,
    pub centroids: Vec<i32>,
    pub bands: Vec<i32>,
    pub neighbours: Vec<i32>,
    pub dictionary: Vec<Vec<i32>>,
    pub dictionary_step: i32,
    pub learned: Vec<i32>,
    pub filter: Vec<i32>,
    /// Log2 of the trellis' states, 0 without one.
    pub trellis: usize,
    /// Bits of a state of the bit-shift trellis, 0 without one.
    pub state_bits: u32,
    pub frequency_tables: Vec<Vec<u16>>,
    /// Low bits that are not coded, by row, and whether zeros have signs.
    pub rests: Option<(Vec<u32>, bool)>,
    pub lattice: Option<Lattice>,
    /// Patterns of the layer before, row by row, of a refinement.
    pub before: Vec<u32>,
    pub uniform: Option<Tile>,
}

#[derive(Clone, Default, Debug)]
pub struct Tile {
    pub format: usize,
    pub step: i32,
    pub sigma: i32,
    pub mode: usize,
    /// Bits of a code of the bit-shift trellis.
    pub bits: u32,
    pub palette: Vec<i32>,
    pub predictor: usize,
    /// Distance, index or value.
    pub argument: i32,
    pub u: Vec<i32>,
    pub v: Vec<i32>,
    pub coarse: i32,
    pub down: usize,
    pub along: usize,
    pub side: usize,
}

impl Tile {
    pub fn is_integer(&self) -> bool {
        [0, 1, 5, 6].contains(&self.format)
    }
}

impl Tensor {
    fn has(&self, bit: u32) -> bool {
        self.tools >> bit & 1 == 1
    }

    pub fn side(&self) -> usize {
        [16, 8, 32, 64][(self.tools >> 13 & 3) as usize]
    }

    pub fn across(&self) -> usize {
        self.cols.div_ceil(self.side())
    }

    pub fn bits(&self) -> usize {
        [16, 16, 32, 8, 8, 8, 4][usize::from(self.dtype)]
    }
}

/// Header, side information, and the slices' bytes; a refinement comes with the layer before.
pub fn parse<'a>(bytes: &'a [u8], before: Option<&Tensor>) -> (Tensor, Vec<&'a [u8]>) {
    assert_eq!(&bytes[..4], b"WFT1");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let half = |at: usize| i16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
    let mut t = Tensor {
        dtype: bytes[4],
        lanes: 1 << bytes[5],
        slice_rows: half(6) as usize * 8,
        rows: word(8) as usize,
        cols: word(12) as usize,
        step_base: half(16).into(),
        sigma_base: half(18).into(),
        tools: word(20),
        digest: bytes[28..44].to_vec(),
        ..Tensor::default()
    };
    assert!(
        t.dtype <= 6
            && t.lanes <= 64
            && t.tools & !((1 << 18) - 1 | 1 << 19 | 1 << 22 | 3 << 23) == 0
            && (!t.has(22) || t.tools & 0b11_0111_1111_0111_1000 == 0)
            && (t.tools & 3 << 23 == 0 || t.dtype <= 2)
            && (!t.has(24) || t.tools == 1 << 24 | 1 << 15 | 1)
            && (8..=1024).contains(&t.slice_rows)
    );
    assert!(t.slice_rows % t.side() == 0 && t.rows <= 1 << 24 && t.cols <= 1 << 24 && t.rows * t.cols <= 1 << 33);
    assert!(t.rows.min(t.slice_rows) * t.cols <= 1 << 22 && (t.dtype < 6 || t.cols % 2 == 0));
    let side_bytes = word(24) as usize;
    let count = if t.cols == 0 { 0 } else { t.rows.div_ceil(t.slice_rows) };
    let table = 44 + 12 * count;
    let (side, mut at) = (table + 8, table + 8 + side_bytes);
    let stored = u64::from_le_bytes(bytes[table..side].try_into().unwrap());
    assert_eq!(stored, check(&[&bytes[..table], &bytes[side..at]].concat()));
    let mut slices = Vec::new();
    for n in 0..count {
        let slice = &bytes[at..at + word(44 + 12 * n) as usize];
        assert_eq!(
            u64::from_le_bytes(bytes[48 + 12 * n..56 + 12 * n].try_into().unwrap()),
            twox_hash::XxHash3_64::oneshot(slice)
        );
        slices.push(slice);
        at += slice.len();
    }
    assert_eq!(at, bytes.len());
    assert_eq!(t.has(19), before.is_some(), "a layer before, of refinements only");
    side_information(&mut t, &bytes[side..side + side_bytes]);
    if let Some(b) = before {
        assert!((t.dtype, t.rows, t.cols) == (b.dtype, b.rows, b.cols) && t.dtype < 3);
        for (vector, scales) in [
            (&mut t.row_scale, &b.row_scale),
            (&mut t.col_scale, &b.col_scale),
            (&mut t.row_sigma, &b.row_scale),
            (&mut t.col_sigma, &b.col_scale),
        ] {
            vector.iter_mut().zip(scales).for_each(|(v, s)| *v = (*v + s).clamp(-127, 127));
        }
    }
    (t, slices)
}

fn entries(coder: &mut Coder, n: usize) -> Vec<i32> {
    let mut model = int_model();
    (0..n).map(|_| coder.int(&mut model).clamp(-127, 127)).collect()
}

/// Section 4.
fn side_information(t: &mut Tensor, bytes: &[u8]) {
    let mut coder = Coder::new(bytes);
    let (rows, cols) = (t.rows, t.cols);
    let mut vector = |n: usize| if coder.raw(1) == 1 { entries(&mut coder, n) } else { vec![0; n] };
    (t.row_scale, t.col_scale, t.row_sigma, t.col_sigma) = (vector(rows), vector(cols), vector(rows), vector(cols));
    let mut optional = |used: bool, n: usize| if used { entries(&mut coder, n) } else { vec![0; n] };
    t.linear = optional(t.has(16), 3);
    t.centroids = optional(t.has(9), 3);
    t.bands = optional(t.has(6), 36);
    t.neighbours = if t.has(8) { optional(true, 8) } else { Vec::new() };
    if t.has(10) {
        let count = coder.raw(8) as usize + 1;
        t.dictionary_step = coder.int(&mut int_model()).clamp(-2000, 2000);
        assert!(count * cols <= 1 << 22);
        t.dictionary = (0..count).map(|_| entries(&mut coder, cols)).collect();
    }
    if t.has(11) {
        t.learned = (0..256).map(|_| (coder.raw(14) as i32 - (1 << 13)).clamp(-4096, 4096)).collect();
    }
    if t.has(12) {
        t.filter = entries(&mut coder, 2);
    }
    if t.has(17) {
        t.trellis = coder.raw(4) as usize;
        assert!((2..=8).contains(&t.trellis));
    }
    if t.has(22) {
        t.state_bits = coder.raw(4) + 1;
        assert!((8..=16).contains(&t.state_bits));
    }
    if t.has(15) {
        let count = coder.raw(4);
        assert!((1..=8).contains(&count));
        t.frequency_tables = (0..count).map(|_| frequencies(&mut coder)).collect();
    }
    if t.has(23) {
        let (cut, signed_zeros) = (coder.raw(5), coder.raw(1) == 1);
        let by_row = if coder.raw(1) == 1 { entries(&mut coder, rows) } else { vec![0; rows] };
        t.rests = Some((by_row.iter().map(|&c| cut + c.max(0) as u32).collect(), signed_zeros));
    }
    if t.has(24) {
        t.lattice = Some(Lattice::read(&mut coder));
    }
    if t.has(0) {
        let full = rows >= t.side() && cols >= t.side();
        t.uniform = Some(tile(t, &mut coder, &mut Models::new(), None, full));
    }
    assert!(t.lattice.is_none() || t.uniform.as_ref().is_some_and(|tile| tile.format == 3));
    coder.end();
}

fn frequencies(coder: &mut Coder) -> Vec<u16> {
    let (mut present, mut length) = ([bit_model(), bit_model()], int_model());
    let (mut occurs, mut last) = (false, 4);
    let mut table = Vec::new();
    for _ in 0..256 {
        occurs = coder.bit(&mut present[usize::from(occurs)]);
        table.push(if occurs {
            last = (last + coder.int(&mut length)).clamp(1, 13);
            (1 << (last - 1)) + coder.wide(last as u32 - 1) as u16
        } else {
            0
        });
    }
    assert_eq!(table.iter().map(|&f| u32::from(f)).sum::<u32>(), 4096);
    table
}

struct Models {
    merged: [Bit; 2],
    format: Vec<Vec<Bit>>,
    mean: i32,
    count: i32,
    step: Int,
    sigma: Int,
    mode: Vec<Vec<Bit>>,
    palette: Int,
    predictor: Vec<Bit>,
    argument: Vec<Int>,
    rank: Int,
    coarse: Int,
    down: Vec<Bit>,
    along: Vec<Bit>,
    split: [Bit; 2],
    bits: Vec<Bit>,
}

impl Models {
    fn new() -> Self {
        Self {
            merged: [bit_model(), bit_model()],
            format: vec![tree_model(3); 8],
            mean: 0,
            count: 0,
            step: int_model(),
            sigma: int_model(),
            mode: vec![tree_model(2); 2],
            palette: int_model(),
            predictor: tree_model(4),
            argument: vec![int_model(); 3],
            rank: int_model(),
            coarse: int_model(),
            down: tree_model(3),
            along: tree_model(3),
            split: [bit_model(), bit_model()],
            bits: tree_model(3),
        }
    }
}

/// Section 6.1.
fn tile(t: &Tensor, c: &mut Coder, m: &mut Models, left: Option<&Tile>, full: bool) -> Tile {
    let mut tile = Tile { side: 16, ..Tile::default() };
    tile.format = c.tree(&mut m.format[left.map_or(1, |l| l.format)]);
    tile.step = (m.mean + 8) >> 4;
    if t.has(1) && tile.format != 3 {
        tile.step = (tile.step + c.int(&mut m.step)).clamp(-2000, 2000);
        m.count = (m.count + 1).min(64);
        m.mean += (16 * tile.step - m.mean).div_euclid(m.count);
    }
    if t.has(19) {
        tile.sigma = tile.step;
    }
    if t.has(2) {
        tile.sigma += c.int(&mut m.sigma).clamp(-127, 127);
    }
    if !tile.is_integer() {
        return tile;
    }
    if t.has(22) {
        tile.bits = c.tree(&mut m.bits) as u32 + 1;
        return tile;
    }
    if t.has(3) {
        tile.mode = c.tree(&mut m.mode[usize::from(left.is_some_and(|l| l.mode == 1))]);
    }
    if tile.mode == 2 {
        let count = c.raw(3) + 1;
        tile.palette = (0..count).map(|_| c.int(&mut m.palette).clamp(-127, 127)).collect();
    }
    assert!(tile.mode != 3 || full && t.side() == 16);
    if t.has(4) {
        tile.predictor = c.tree(&mut m.predictor);
        match tile.predictor {
            6 => tile.argument = c.int(&mut m.argument[0]).clamp(0, 65535),
            7 => tile.argument = c.int(&mut m.argument[1]).clamp(0, 255),
            8 => tile.argument = c.int(&mut m.argument[2]).clamp(-127, 127),
            9 => {
                assert_eq!(t.side(), 16);
                tile.u = (0..16).map(|_| c.int(&mut m.rank).clamp(-127, 127)).collect();
                tile.v = (0..16).map(|_| c.int(&mut m.rank).clamp(-127, 127)).collect();
            }
            other => assert!(other < 10),
        }
    }
    if tile.mode == 1 || tile.mode == 2 {
        return tile;
    }
    if t.has(5) {
        tile.coarse = c.int(&mut m.coarse).clamp(0, 31);
    }
    if t.has(6) && t.side() == 16 && full {
        tile.down = c.tree(&mut m.down);
        tile.along = c.tree(&mut m.along);
        assert!(tile.down <= 4 && tile.along <= 4);
        if (tile.down, tile.along) != (0, 0) && c.bit(&mut m.split[0]) {
            tile.side = if c.bit(&mut m.split[1]) { 4 } else { 8 };
        }
        assert!((tile.down < 4 && tile.along < 4) || t.has(11) && tile.side == 16);
    }
    tile
}

/// Tiles, levels in bit planes by tile, and the groups of a lattice.
type Headers = (Vec<Tile>, Vec<(usize, Vec<i32>)>, Option<Groups>);

/// Headers of the slice of the rows `top..bottom`.
pub fn tiles(t: &Tensor, bytes: &[u8], (top, bottom): (usize, usize)) -> Headers {
    let rows = bottom - top;
    let mut coder = Coder::new(bytes);
    let (across, down) = (t.across(), rows.div_ceil(t.side()));
    let full = |row: usize, col: usize| (row + 1) * t.side() <= rows && (col + 1) * t.side() <= t.cols;
    let mut tiles: Vec<Option<Tile>> = vec![t.uniform.clone(); across * down];
    let mut models = Models::new();
    for n in 0..tiles.len() {
        if tiles[n].is_some() {
            continue;
        }
        let (row, col) = (n / across, n % across);
        let mut group = 1;
        if t.has(7) {
            if row % 4 == 0 && col % 4 == 0 && coder.bit(&mut models.merged[0]) {
                group = 4;
            } else if row % 2 == 0 && col % 2 == 0 && coder.bit(&mut models.merged[1]) {
                group = 2;
            }
        }
        let left = if col > 0 { tiles[n - 1].clone() } else { None };
        let one = tile(t, &mut coder, &mut models, left.as_ref(), full(row, col));
        for r in row..down.min(row + group) {
            for c in col..across.min(col + group) {
                assert!(one.mode != 3 || full(r, c));
                tiles[r * across + c] = Some(one.clone());
            }
        }
    }
    let tiles: Vec<Tile> = tiles.into_iter().map(Option::unwrap).collect();
    let mut planes = Planes {
        count: tree_model(4),
        block: vec![bit_model(); 15],
        level: vec![vec![bit_model(); 3]; 15],
        refine: vec![bit_model(); 15],
    };
    let in_planes = tiles.iter().enumerate().filter(|(_, t)| t.mode == 3);
    let levels = in_planes.map(|(n, _)| (n, bit_planes(&mut coder, &mut planes))).collect();
    let groups = t.lattice.as_ref().map(|lattice| lattice.groups(t, &mut coder, top, bottom));
    coder.end();
    (tiles, levels, groups)
}

struct Planes {
    count: Vec<Bit>,
    block: Vec<Bit>,
    level: Vec<Vec<Bit>>,
    refine: Vec<Bit>,
}

/// Section 6.4.
fn bit_planes(coder: &mut Coder, models: &mut Planes) -> Vec<i32> {
    let count = coder.tree(&mut models.count);
    let (mut magnitude, mut negative, mut significant) = ([0i32; 256], [false; 256], [false; 16]);
    for plane in (0..count).rev() {
        for block in 0..16 {
            if !significant[block] {
                significant[block] = coder.bit(&mut models.block[plane]);
            }
            if !significant[block] {
                continue;
            }
            for n in 0..16 {
                let (row, col) = (block / 4 * 4 + n / 4, block % 4 * 4 + n % 4);
                let i = 16 * row + col;
                if magnitude[i] > 0 {
                    magnitude[i] = 2 * magnitude[i] + i32::from(coder.bit(&mut models.refine[plane]));
                    continue;
                }
                let context =
                    usize::from(col > 0 && magnitude[i - 1] > 0) + usize::from(row > 0 && magnitude[i - 16] > 0);
                if coder.bit(&mut models.level[plane][context]) {
                    magnitude[i] = 1;
                    negative[i] = coder.raw(1) == 1;
                }
            }
        }
    }
    (0..256).map(|i| if negative[i] { -magnitude[i] } else { magnitude[i] }).collect()
}
