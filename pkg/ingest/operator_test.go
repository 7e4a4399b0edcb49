package ingest

import (
	"net/http"
	"testing"

	"github.com/fairhook/fairhook/pkg/webhook"
)

func TestTheOperatorsTenant(t *testing.T) {
	t.Parallel()
	const create = `{"tenant":"` + webhook.OperatorTenant + `","url":"http://127.0.0.1:1/","event_types":["webhook.*"]}`

	t.Run("TakesNoEventByAnyWayIn", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w, _ := want[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", create)
		for path, body := range map[string]string{
			"/v1/events": submitBody(`"tenant":"`+webhook.OperatorTenant+`"`, `1`),
			"/v1/webhooks/" + w.ID.String() + "/events?type=webhook.failing": `{}`,
		} {
			refused(t, b, http.StatusForbidden, "forbidden", "POST", path, body)
		}
		refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/events",
			`{"webhook_id":"`+w.ID.String()+`","type":"webhook.failing","payload":1}`)
		batch, _ := want[struct {
			Results []struct{ Status int }
		}](t, b, http.StatusOK, "POST", "/v1/events/batch", `[`+submitBody(`"tenant":"`+webhook.OperatorTenant+`"`, `1`)+`]`)
		if len(batch.Results) != 1 || batch.Results[0].Status != http.StatusForbidden {
			t.Errorf("a batch gets %+v", batch)
		}
		var events int
		if err := b.db.QueryRow(t.Context(), `SELECT count(*) FROM fairhook.events`).Scan(&events); err != nil || events != 0 {
			t.Errorf("%d events are stored, error %v", events, err)
		}
	})
	t.Run("BelongsToKeysForAllTenants", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		w, _ := want[webhook.Webhook](t, b, http.StatusCreated, "POST", "/v1/webhooks", create)
		one := newKey(t, b, "acme", "", webhook.ScopeAdmin)
		refused(t, b, http.StatusForbidden, "forbidden", "POST", "/v1/webhooks", create, one.with()...)
		refused(t, b, http.StatusNotFound, "not-found", "GET", "/v1/webhooks/"+w.ID.String(), "", one.with()...)
		p, _ := refused(t, b, http.StatusUnprocessableEntity, "invalid-request", "POST", "/v1/keys",
			`{"tenant":"`+webhook.OperatorTenant+`","scopes":["read"]}`)
		if got := p.fields(); len(got) != 1 || got[0] != "/tenant: is reserved: the operators' webhooks are for keys for all tenants" {
			t.Errorf("a key of the tenant is refused with %q", got)
		}
		manage := newKey(t, b, "", "", webhook.ScopeManage)
		want[any](t, b, http.StatusCreated, "POST", "/v1/webhooks", create, manage.with()...)
	})
}
