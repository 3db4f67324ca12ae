//! Members with a fixed set of values: an enumeration in the document, and in generated clients.

/// Declares such a set. Each variant has the name that it has on the wire. `of TYPE` also makes it from the service's
/// own type, whose variants have the same names.
macro_rules! closed_set {
    (
        $(#[$about:meta])*
        $visible:vis enum $name:ident { $($(#[$note:meta])* $variant:ident = $wire:tt),+ $(,)? }
        $(of $source:ty)?
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, poem_openapi::Enum, serde::Serialize, serde::Deserialize)]
        $visible enum $name {
            $($(#[$note])* #[oai(rename = $wire)] #[serde(rename = $wire)] $variant),+
        }

        impl $name {
            #[allow(dead_code)] // Some sets are only sent, others only read.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $wire),+
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($wire => Ok(Self::$variant),)+
                    _ => Err(format!("must be one of {}", [$($wire),+].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        $crate::api::closed_set::closed_set!(@from $name { $($variant),+ } $($source)?);
    };
    (@from $name:ident { $($variant:ident),+ } $source:ty) => {
        impl From<$source> for $name {
            fn from(source: $source) -> Self {
                match source {
                    $(<$source>::$variant => Self::$variant),+
                }
            }
        }
    };
    (@from $name:ident { $($variant:ident),+ }) => {};
}

pub(crate) use closed_set;
