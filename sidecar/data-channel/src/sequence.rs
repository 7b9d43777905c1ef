//! Sequence numbers of stream messages; the wire field is signed (docs/ssm-protocol.md, section 7).

/// Position of a stream message within its direction, counted in messages from 0.
///
/// The wire field is a signed 64-bit integer, so the largest number is `i64::MAX`.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SequenceNumber(u64);

impl SequenceNumber {
    /// Number of the first message of each direction.
    pub const FIRST: Self = Self(0);

    /// Largest number of the wire field.
    pub const LAST: Self = Self(i64::MAX.unsigned_abs());

    /// Reads the wire field; `None` for a negative value.
    pub fn from_wire(raw: i64) -> Option<Self> {
        u64::try_from(raw).ok().map(Self)
    }

    /// Returns the value of the wire field.
    #[must_use]
    pub fn to_wire(self) -> i64 {
        // Every constructor keeps the number within the field.
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Returns the number after this one; `None` after [`SequenceNumber::LAST`].
    #[must_use]
    pub fn next(self) -> Option<Self> {
        (self < Self::LAST).then_some(Self(self.0 + 1))
    }

    /// Returns the distance from `earlier` in messages; `None` if this number is smaller.
    #[must_use]
    pub fn offset_from(self, earlier: Self) -> Option<usize> {
        // An offset that does not fit `usize` is beyond every buffer.
        self.0.checked_sub(earlier.0).map(|offset| usize::try_from(offset).unwrap_or(usize::MAX))
    }

    /// Returns the number `messages` after this one, at most [`SequenceNumber::LAST`].
    #[must_use]
    pub fn advanced_by(self, messages: usize) -> Self {
        let messages = u64::try_from(messages).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(messages)).min(Self::LAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_wire_values_are_not_numbers() {
        for raw in [-1, i64::MIN] {
            assert_eq!(SequenceNumber::from_wire(raw), None, "raw {raw}");
        }
    }

    #[test]
    fn the_wire_field_is_used_to_its_end() {
        let last = SequenceNumber::from_wire(i64::MAX).unwrap();
        assert_eq!(last, SequenceNumber::LAST);
        assert_eq!(last.to_wire(), i64::MAX);
        assert_eq!(last.next(), None);
        let before = SequenceNumber::from_wire(i64::MAX - 1).unwrap();
        assert_eq!(before.next(), Some(last));
        assert_eq!(last.offset_from(before), Some(1));
        assert_eq!(before.offset_from(last), None);
        assert_eq!(before.advanced_by(7), last);
    }
}
