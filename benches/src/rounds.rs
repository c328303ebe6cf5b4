//! What is asked of a ratio.

/// Says what a row asks of a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// The ratio is to be at least this.
    AtLeast(f64),
    /// The ratio is to be at most this.
    AtMost(f64),
    /// The ratio is shown only.
    Shown,
}

impl Goal {
    /// Tells whether a ratio holds to it.
    #[must_use]
    pub fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(least) => ratio >= least,
            Self::AtMost(most) => ratio <= most,
            Self::Shown => true,
        }
    }
}
