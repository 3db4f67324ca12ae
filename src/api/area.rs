//! One area of the service as a parameter of a handler. A handler gets only the areas that it names.

use std::ops::Deref;
use std::sync::Arc;

use poem::error::GetDataError;
use poem::{FromRequest, Request, RequestBody};

use crate::service::Areas;

pub struct Area<'a, T>(&'a Arc<T>);

impl<T> Area<'_, T> {
    /// For work that outlives the handler.
    pub fn share(&self) -> Arc<T> {
        Arc::clone(self.0)
    }
}

impl<T> Deref for Area<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0
    }
}

impl<'a, T: Send + Sync> FromRequest<'a> for Area<'a, T>
where
    Areas: AsRef<Arc<T>>,
{
    async fn from_request(request: &'a Request, _body: &mut RequestBody) -> poem::Result<Self> {
        let areas = request.data::<Arc<Areas>>().ok_or(GetDataError("Areas"))?;
        Ok(Self((**areas).as_ref()))
    }
}
