//! Cases about modes.

use super::Case;

/// The cases of this theme.
pub(crate) const CASES: &[Case] = &[];
