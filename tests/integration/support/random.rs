//! Random choices that a seed reproduces.

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    /// A new random seed.
    pub fn fresh_seed() -> u64 {
        u64::from_le_bytes(codex_authd::platform::random(&codex_authd::platform::System))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn share(&mut self) -> f64 {
        self.below(1000) as f64 / 1000.0
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub fn flips(&mut self, share: f64) -> bool {
        self.share() < share
    }
}
