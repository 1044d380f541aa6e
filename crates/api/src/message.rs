//! The macro that declares API structs.

/// Whether a field has its proto default and is left out of JSON.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares a struct with the JSON form of a proto3 message: camelCase names, every field optional, defaults left out.
/// A field written `name!: Type` is marked as required in the CRD schema (it still parses when absent, so that
/// validation can name what is missing).
macro_rules! message {
    ($(#[$meta:meta])* pub struct $name:ident { $($body:tt)* }) => {
        message!(@fields [$(#[$meta])*] $name [] $($body)*);
    };
    (@fields [$($meta:tt)*] $name:ident [$($done:tt)*] $(#[$($fm:tt)+])* $field:ident! : $ty:ty, $($rest:tt)*) => {
        message!(@fields [$($meta)*] $name [$($done)*
            $(#[$($fm)+])*
            #[serde(default, skip_serializing_if = "crate::message::is_default")]
            #[schemars(extend("x-required" = true))]
            pub $field: $ty,
        ] $($rest)*);
    };
    (@fields [$($meta:tt)*] $name:ident [$($done:tt)*] $(#[$($fm:tt)+])* $field:ident : $ty:ty, $($rest:tt)*) => {
        message!(@fields [$($meta)*] $name [$($done)*
            $(#[$($fm)+])*
            #[serde(default, skip_serializing_if = "crate::message::is_default")]
            pub $field: $ty,
        ] $($rest)*);
    };
    (@fields [$($meta:tt)*] $name:ident [$($done:tt)*]) => {
        $($meta)*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name { $($done)* }
    };
}
