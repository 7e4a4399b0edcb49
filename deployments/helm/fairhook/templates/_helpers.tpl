{{- define "fairhook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Short enough for "-dispatcher" and a pod's own suffix behind it. */}}
{{- define "fairhook.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "fairhook.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "fairhook.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "fairhook.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "fairhook.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "fairhook.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* Takes a dict of root and component. */}}
{{- define "fairhook.selector" -}}
app.kubernetes.io/name: {{ include "fairhook.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "fairhook.labels" -}}
{{ include "fairhook.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- /* The variable of a setting. */}}
{{- define "fairhook.variable" -}}
FAIRHOOK_{{ . | upper | replace "-" "_" }}
{{- end }}

{{- /*
The environment of a component: dict of root, component, settings (its own, which
win), and fixed (what the chart decides). Nobody gets a secret without a use for it.
*/}}
{{- define "fairhook.env" -}}
{{- $secrets := list "database-url" "listen-database-url" }}
{{- if ne .component "migrate" }}{{ $secrets = concat $secrets (list "encryption-key" "old-encryption-keys") }}{{ end }}
{{- if eq .component "ingest" }}{{ $secrets = append $secrets "bootstrap-key" }}{{ end }}
{{- if eq .component "dispatcher" }}{{ $secrets = append $secrets "egress-proxy" }}{{ end }}
{{- range $setting := $secrets }}
{{- with index $.root.Values.secrets $setting }}
{{- if .name }}
- name: {{ include "fairhook.variable" $setting }}
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- end }}
{{- /* Not mergeOverwrite: to that a false or a 0 is nothing. */}}
{{- $settings := dict }}
{{- $common := .root.Values.settings }}
{{- if eq .component "migrate" }}{{ $common = pick $common "log-level" "log-format" }}{{ end }}
{{- range list $common .settings .fixed }}
{{- range $setting, $value := . }}{{ $_ := set $settings $setting $value }}{{ end }}
{{- end }}
{{- range $setting, $value := $settings }}
- name: {{ include "fairhook.variable" $setting }}
  value: {{ include "fairhook.text" $value | quote }}
{{- end }}
{{- end }}

{{- /* A setting's value as one writes it: whole numbers without an exponent, lists with commas. */}}
{{- define "fairhook.text" -}}
{{- if kindIs "float64" . }}{{ printf "%.0f" . }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- define "fairhook.podSecurity" -}}
automountServiceAccountToken: false
# Services called "fairhook" would put variables of that prefix into every pod.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fairhook.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Where a component's pods go: dict of root, component and values. */}}
{{- define "fairhook.placement" -}}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "fairhook.selector" $ | nindent 8 }}
  {{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Probes of the port called http. */}}
{{- define "fairhook.probes" -}}
livenessProbe:
  httpGet: {path: /livez, port: http}
  initialDelaySeconds: 5
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}
