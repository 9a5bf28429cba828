package s3ufs

import (
	"crypto/x509"
	"errors"
	"net/http"

	"stoker.dev"
)

// untrusted returns what to do if the store's certificate is why there is no
// answer, else nil. No other try helps.
func (f *FS) untrusted(op string, err error) error {
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown):
		return stoker.Errorf(stoker.KindInvalid, op, f.base, "its certificate is from an authority that is not known here: name a file with that authority's certificate in AWS_CA_BUNDLE where the daemons run (%w)", err)
	case errors.As(err, &name), errors.As(err, &invalid):
		return stoker.Errorf(stoker.KindInvalid, op, f.base, "its certificate is not valid for it: mend it, or use the name that it has as --endpoint (%w)", err)
	case errors.Is(err, http.ErrSchemeMismatch):
		return stoker.Errorf(stoker.KindInvalid, op, f.base, "does not speak TLS: is it an http:// endpoint? (%w)", err)
	}
	return nil
}
