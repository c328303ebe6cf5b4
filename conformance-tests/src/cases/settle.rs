//! Cases about settle.

use super::Case;

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[];
