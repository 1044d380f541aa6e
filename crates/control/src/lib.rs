//! lateend: watch, push, webhooks, status, certificates, debug.
