package api

import (
	"net/http"
	"net/url"
	"strconv"

	"stoker.dev"
)

// How many a page has.
const (
	DefaultPage = 1000
	MaxPage     = 10_000
)

// page is the query of a page: what comes after a path, limit at most.
func page(after string, limit int) string {
	return url.Values{"after": {after}, "limit": {strconv.Itoa(limit)}}.Encode()
}

// PageOf reads it; without a limit it is DefaultPage.
func PageOf(r *http.Request) (after string, limit int, err error) {
	q := r.URL.Query()
	if limit = DefaultPage; q.Has("limit") {
		if limit, err = strconv.Atoi(q.Get("limit")); err != nil || limit < 1 || limit > MaxPage {
			return "", 0, stoker.Errorf(stoker.KindInvalid, "page", "", "limit=%q: want 1 to %d", q.Get("limit"), MaxPage)
		}
	}
	return q.Get("after"), limit, nil
}
