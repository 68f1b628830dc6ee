{{/* The chart's name in labels. */}}
{{- define "moneygo-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The name of every object: the release's alone where the chart's is in it. 52 characters leave room for suffixes. */}}
{{- define "moneygo-operator.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- $release := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $release | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "moneygo-operator.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace }}
{{- end }}

{{- define "moneygo-operator.serviceAccountName" -}}
{{- $own := .Values.serviceAccount.create | ternary (include "moneygo-operator.fullname" .) "default" }}
{{- .Values.serviceAccount.name | default $own }}
{{- end }}

{{/* What finds the Pods. It never changes: a Deployment's selector is immutable. */}}
{{- define "moneygo-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "moneygo-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "moneygo-operator.commonLabels" -}}
{{- with mergeOverwrite (dict) (.Values.global.commonLabels | default dict) .Values.commonLabels }}
{{- toYaml . }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" .Release.Service
  "app.kubernetes.io/part-of" "moneygo-operator" }}
{{- $common := include "moneygo-operator.commonLabels" . | fromYaml }}
{{- $selector := include "moneygo-operator.selectorLabels" . | fromYaml }}
{{- toYaml (mergeOverwrite $own $common $selector) }}
{{- end }}

{{/* An object's metadata: list ROOT, NAME, more labels, annotations. */}}
{{- define "moneygo-operator.metadata" -}}
{{- $root := index . 0 -}}
name: {{ index . 1 }}
namespace: {{ include "moneygo-operator.namespace" $root }}
labels:
  {{- include "moneygo-operator.labelsWith" (list $root (index . 2)) | nindent 2 }}
{{- with index . 3 }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The labels of every object and some more: list ROOT, labels. Those that find Pods win. */}}
{{- define "moneygo-operator.labelsWith" -}}
{{- $root := index . 0 }}
{{- $labels := include "moneygo-operator.labels" $root | fromYaml }}
{{- $selector := include "moneygo-operator.selectorLabels" $root | fromYaml }}
{{- toYaml (mergeOverwrite $labels (index . 1) $selector) }}
{{- end }}

{{- define "moneygo-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "moneygo-operator.leaseName" -}}
{{- .Values.leaderElection.leaseName | default (include "moneygo-operator.fullname" .) }}
{{- end }}

{{/* What the operator does with objects and Secrets: the same for a ClusterRole and for the Role of one namespace. */}}
{{- define "moneygo-operator.rules" -}}
# The objects, and what became of them. `get` serves objects that an older schema let in.
- apiGroups: [money-go.com]
  resources: [moneygocredentials]
  verbs: [get, list, watch]
- apiGroups: [money-go.com]
  resources: [moneygocredentials/status]
  verbs: [patch]
# Clients and tokens. Watched as metadata only; `get` reads the one that is worked on.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, list, watch, create, update{{ if .Values.rbac.deleteSecrets }}, delete{{ end }}]
# No grant starts in a namespace that is being deleted. In a Role this is the namespace itself and no other.
- apiGroups: [""]
  resources: [namespaces]
  verbs: {{ if .Values.watchNamespaces }}[get]{{ else }}[list, watch]{{ end }}
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What it does in its own namespace. Nothing where it watches all of them and elects no leader. */}}
{{- define "moneygo-operator.ownRules" -}}
{{- if .Values.watchNamespaces }}
# The key of the digests.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [secrets]
  resourceNames: [moneygo-operator-digest-key]
  verbs: [get]
{{- end }}
{{- if .Values.leaderElection.enabled }}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update]
{{- end }}
{{- end }}

{{- define "moneygo-operator.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "moneygo-operator.serviceAccountName" . }}
    namespace: {{ include "moneygo-operator.namespace" . }}
{{- end }}

{{/* The port of a URL, or nothing. */}}
{{- define "moneygo-operator.portOf" -}}
{{- with regexFind ":[0-9]+$" (urlParse .).host }}
{{- trimPrefix ":" . }}
{{- end }}
{{- end }}

{{/* What the HTTP server's scraper is told, by a ServiceMonitor or a PodMonitor. */}}
{{- define "moneygo-operator.scrape" -}}
port: http
path: /metrics
honorLabels: {{ .honorLabels }}
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
